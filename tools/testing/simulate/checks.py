"""What must hold of training, sampling, requests and waits in a simulated run, whatever goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from learner_jax.contracts import Trajectory
from learner_jax.runtime import Waits
from serving_bridge.queue import Pace
from tools.testing.simulate.checkpoints import State
from tools.testing.simulate.file_checks import FileChecks
from tools.testing.simulate.violations import Violations
from tools.testing.simulate.weights import logprob_of

#: a wait is seen after its bound by as long as the request takes that was sent just before: control requests have 3 s
_GRACE_S = 4.0


class RunChecks:
    """Attributes:
    trained: trainings that were checked.
    """

    def __init__(self, violations: Violations, pace: Pace, files: FileChecks) -> None:
        self._violations, self._pace, self._files = violations, pace, files
        self._served: dict[str, int] = {}
        self._wrong: dict[str, str] = {}
        self._names: dict[str, set[str]] = {}
        self.trained = 0

    def training(self, groups: Sequence[Sequence[Trajectory]], version: int, history: set[str]) -> None:
        """Just before a step is made."""
        self.trained += 1
        require = self._violations.require
        require(len(groups) == self._pace.groups_per_step, "size of a step", f"{len(groups)} groups make a step")
        for group in groups:
            name = group[0].group_id
            require(name not in history, "trained twice", name)
            history = history | {name}
            for trajectory in group:
                lag = version - min(trajectory.policy_version[trajectory.policy_version >= 0].tolist())
                most = self._pace.max_staleness
                require(lag <= most, "staleness", f"{trajectory.trajectory_id} lags {lag} versions, allowed are {most}")
                self._check_logprobs(trajectory)

    def _check_logprobs(self, trajectory: Trajectory) -> None:
        tokens = trajectory.tokens.tolist()
        for position in np.flatnonzero(trajectory.loss_mask).tolist():
            version = int(trajectory.policy_version[position])
            identity = self._files.identities.get(version)
            expected = None if identity is None else logprob_of(identity, tokens, position)
            logprob = float(trajectory.behavior_logprobs[position])
            self._violations.require(
                expected is not None and abs(logprob - expected) < 1e-3,
                "token of another version",
                f"{trajectory.trajectory_id}: token {position} was not sampled by version {version}",
            )

    def sampled(self, engine: str, name: str, identity: int) -> None:
        """Whenever an engine samples a token that is an answer's."""
        require = self._violations.require
        require(name != "unproven", "unproven weights", f"{engine} samples with weights that nothing has proven")
        if not name.isdecimal():
            return
        version = int(name)
        right = self._files.identities.get(version) == identity
        require(right, "weights of another version", f"{engine} samples with {identity} as version {version}")
        before = self._served.get(engine, 0)
        require(version >= before, "version went back", f"{engine} samples with version {version} after {before}")
        self._served[engine] = version

    def named(self, url: str, name: str) -> None:
        """The weights of an engine get a name."""
        self._names.setdefault(url, set()).add(name)

    def listed(self, replica: str, url: str, version: int) -> None:
        """Workers and the store are told which version a replica serves, -1 for none: its engine once had it."""
        serves = version < 0 or str(version) in self._names.get(url, ())
        what = f"{replica} is listed with version {version}, which the engine at {url or 'no address'} never had"
        self._violations.require(serves, "version that is not served", what)

    def slots(self, worker: str, taken: Mapping[str, int], total: int, sent: Mapping[str, int]) -> None:
        """Now and then, for each worker.

        Args:
          taken: answers in flight by URL of each known replica, as its dispatcher counts them.
          total: of all, also of replicas that it no longer knows.
          sent: answers that were asked for and have not come, by URL.
        """
        # A replica that left and came back under its URL is counted anew; answers asked of it before are in the total.
        wrong = {url: (count, sent[url]) for url, count in taken.items() if not 0 <= count <= sent[url]}
        actual = sum(sent.values())
        what = f"{worker} counts {total} answers in flight, there are {actual}; by replica (counted, actual) {wrong}"
        # Slots that were granted at this very moment are used a moment later.
        before, self._wrong[worker] = self._wrong.get(worker), what if wrong or total != actual else ""
        self._violations.require(not before or before != self._wrong[worker], "slots", what)

    def rounds(self, in_round: int, most: int) -> None:
        """Now and then: replicas of the fleet that are in a weight round."""
        self._violations.require(in_round <= most, "rounds at once", f"{in_round} replicas, allowed are {most}")

    def waiting(self, who: str, waits: Waits) -> None:
        """Now and then, for every process that runs."""
        for state in waits.current():
            in_time = state.waited_s <= state.limit_s + _GRACE_S
            what = f"{who} waits for {state.what} since {state.waited_s:.1f} s, allowed {state.limit_s:.1f}"
            self._violations.require(in_time, "wait without a bound", what)

    def finished(self, newest: tuple[int, State] | None, steps: int) -> set[str]:
        """After the run has finished: everything that was accepted is accounted for; returns what was trained on."""
        step, history = (0, ()) if newest is None else (newest[0], newest[1].params.history)
        require = self._violations.require
        require(step == steps, "no last checkpoint", f"the run has finished, its newest checkpoint is {step}")
        ids = [name for _, each in history for name in each]
        once = len(set(ids)) == len(ids) == steps * self._pace.groups_per_step
        require(once, "history", f"the surviving history holds {len(ids)} groups, {len(set(ids))} different ones")
        return set(ids)
