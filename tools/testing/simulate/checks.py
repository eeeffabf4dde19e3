"""What must hold at every moment of a simulated run, whatever goes wrong; written without the code that ensures it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from learner_jax.contracts import Trajectory
from learner_jax.runtime import Waits
from serving_bridge.database import Database
from tools.testing.simulate.disks import SimulatedCheckpoints, SimulatedStore, logprob_of, rows_of

#: from each state of a group, those that one transaction may lead to; None: its row goes
_NEXT: Mapping[str | None, frozenset[str | None]] = {
    None: frozenset({"ready", "acknowledged"}),
    "ready": frozenset({"leased", "dropped", "dead", "acknowledged"}),
    "leased": frozenset({"ready", "trained", "dead", "acknowledged"}),
    "trained": frozenset({"ready", "acknowledged"}),
    "acknowledged": frozenset({None}),
    "dropped": frozenset({None, "acknowledged"}),
    "dead": frozenset({None, "acknowledged", "ready"}),
}
#: a wait is seen after its bound by as long as the request takes that was sent just before: control requests have 3 s
_GRACE_S = 4.0


class Violation(AssertionError):
    """Something that must always hold did not."""


class Checks:
    """The invariants, and what has to be remembered to check them.

    Attributes:
      trained: trainings that were checked.
    """

    def __init__(
        self,
        *,
        max_staleness: int,
        groups_per_step: int,
        store: SimulatedStore,
        checkpoints: SimulatedCheckpoints,
        database: Database,
    ) -> None:
        self._max_staleness, self._groups_per_step = max_staleness, groups_per_step
        self._store, self._checkpoints, self._database = store, checkpoints, database
        self._states: dict[str, str] = {}
        self._next_prompt = 0
        self._served: dict[str, int] = {}
        self.trained = 0
        self.violation: Violation | None = None

    def violated(self, what: str) -> None:
        """Remembers the first violation: it is found deep in code that may catch what is raised there."""
        if self.violation is None:
            self.violation = Violation(what)

    def committed(self, who: str) -> None:
        """After every transaction of the queue."""
        states = {group_id: state for group_id, state, _ in rows_of(self._database)}
        if states != self._states:
            self._check_transitions(who, states)
        self._states = states
        self._check_gate()

    def _check_transitions(self, who: str, states: dict[str, str]) -> None:
        newest = self._checkpoints.latest()
        durable = newest.trained if newest is not None else set()
        for group_id in states.keys() | self._states.keys():
            before, after = self._states.get(group_id), states.get(group_id)
            if before == after:
                continue
            # A row may go in the very transaction that ends its group.
            if after is None and before not in ("dropped", "dead"):
                after = "acknowledged"
            if before != after and after not in _NEXT[before]:
                self.violated(f"{who} took group {group_id} from {before} to {after}")
            if after == "acknowledged" and group_id not in durable:
                self.violated(f"group {group_id} is acknowledged, but no checkpoint holds it: it is lost")

    def _check_gate(self) -> None:
        """Whenever new prompts were dispatched there was room for them."""
        query = (
            "SELECT (SELECT value FROM progress WHERE key = 'next_prompt'), "
            "(SELECT value FROM progress WHERE key = 'completed_steps'), (SELECT count(*) FROM claims)"
        )
        next_prompt, completed, claimed = self._database.read(lambda session: session.execute(query))[0]
        if next_prompt > self._next_prompt:
            outstanding = sum(state in ("ready", "leased") for state in self._states.values())
            in_use = completed * self._groups_per_step + outstanding + claimed
            allowed = (self._max_staleness + completed + 1) * self._groups_per_step
            if in_use > allowed:
                self.violated(f"{in_use} groups are trained on, waiting or running, the gate allows {allowed}")
        if next_prompt < self._next_prompt:
            self.violated(f"the next prompt went from {self._next_prompt} back to {next_prompt}")
        self._next_prompt = next_prompt

    def training(self, groups: Sequence[Sequence[Trajectory]], version: int, history: set[str]) -> None:
        """Just before a step is recorded."""
        self.trained += 1
        for group in groups:
            if group[0].group_id in history:
                self.violated(f"group {group[0].group_id} is trained on twice")
            history = history | {group[0].group_id}
            for trajectory in group:
                lag = version - trajectory.oldest_version
                if lag > self._max_staleness:
                    self.violated(f"{trajectory.trajectory_id} lags {lag} versions, allowed are {self._max_staleness}")
                self._check_logprobs(trajectory)

    def _check_logprobs(self, trajectory: Trajectory) -> None:
        tokens = trajectory.tokens.tolist()
        for position in np.flatnonzero(trajectory.loss_mask).tolist():
            version = int(trajectory.policy_version[position])
            expected = logprob_of(version, tokens, position)
            if abs(float(trajectory.behavior_logprobs[position]) - expected) > 1e-3:
                self.violated(f"{trajectory.trajectory_id}: token {position} was not sampled by version {version}")

    def sampled(self, engine: str, name: str, identity: int) -> None:
        """Whenever an engine samples a token that is an answer's."""
        if name == "unproven":
            self.violated(f"{engine} samples with weights that nothing has proven")
        if not name.isdecimal():
            return
        version = int(name)
        if identity != version or version not in self._store.steps:
            self.violated(f"{engine} samples with weights {identity} under the name of version {version}")
        if version < self._served.get(engine, 0):
            self.violated(f"{engine} samples with version {version} after {self._served[engine]}")
        self._served[engine] = version

    def waiting(self, who: str, waits: Waits) -> None:
        """Now and then, for every process that runs."""
        for state in waits.current():
            if state.waited_s > state.limit_s + _GRACE_S:
                self.violated(f"{who} waits for {state.what} since {state.waited_s:.1f} s, allowed {state.limit_s:.1f}")

    def finished(self, steps: int) -> None:
        """After the run has finished: everything that was accepted is accounted for."""
        newest = self._checkpoints.latest()
        if newest is None or newest.completed_steps != steps:
            self.violated(f"the run has finished, but its newest checkpoint is {newest and newest.completed_steps}")
            return
        ids = [group_id for _, each in newest.history for group_id in each]
        if len(set(ids)) != len(ids) or len(ids) != steps * self._groups_per_step:
            self.violated(f"the surviving history holds {len(ids)} groups, {len(set(ids))} different ones")
        left = {group_id for group_id, state in self._states.items() if state == "trained"}
        if left:
            self.violated(f"groups {sorted(left)} are neither acknowledged nor given back")
