"""One replica as the fleet controller sees it: its server, its state, and what is known and planned about it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from learner_jax.contracts import WeightManifest
from serving_bridge.fleet.health import Checked, Health
from serving_bridge.fleet.weight_round import RoundOutcome
from serving_bridge.processes import RestartBudget
from serving_bridge.routing import LEAVING, RUNNING, Event, State, advance
from serving_bridge.weights import WeightStore


class Server(Protocol):
    """A vLLM server that the controller may start and end; `Replica` is the real one."""

    name: str

    @property
    def base_url(self) -> str: ...

    @property
    def start_id(self) -> str: ...

    @property
    def client(self) -> Checked: ...

    def exit_status(self) -> int | None:
        """Exit status of the process, None while it runs."""

    async def start(self) -> None:
        """Returns when the server is warm; raises `ReplicaStartError` in bounded time, with nothing left running."""

    async def update(self, store: WeightStore, manifest: WeightManifest, *, round_id: str) -> RoundOutcome:
        """Runs one weight round."""

    async def drain(self) -> bool:
        """Waits, bounded, for the answers in flight; whether none is left."""

    async def stop(self) -> None:
        """Asks the server to end and sees to it."""

    async def kill(self) -> None:
        """Ends the server now."""


class Row(NamedTuple):
    """See `registry.ReplicaRow`."""

    name: str
    url: str
    state: State
    version: int
    step: int
    reason: str
    start: str
    arm: str


@dataclass
class Member:
    """A replica and what the controller knows of it.

    Attributes:
      state: see `serving_bridge.routing.lifecycle`.
      reason: why it is in this state, where that needs words.
      version: policy version that it serves, -1 if none.
      manifest: of the version that it serves.
      retry_s: loop time before which no restart or round is tried.
      must_end: what is left of its process must be ended before anything else.
      is_spent: it has no restarts left for now.
      work: the one thing that is being done with it.
      must_start: whether a first start that fails ends the whole fleet: its settings are wrong, not its luck.
      wish: "serve"; "restart": it shall be drained and started again; "leave": it shall be drained and forgotten.
      returning: it was restarted by wish and does not serve again yet.
      proof_wanted: a round must prove its weights again, since its requests fail.
      damaged: versions that the store holds in a form that this replica can't use.
      arm: of a fleet that follows aliases: the one that it is to serve; "" in other fleets.
      leaving: it is about to be moved to another version, and takes requests only where no other replica can.
    """

    index: int
    server: Server
    health: Health
    budget: RestartBudget
    must_start: bool = False
    state: State = "stopped"
    reason: str = ""
    version: int = -1
    step: int = -1
    manifest: WeightManifest | None = None
    failed_rounds: int = 0
    proofs: int = 0
    retry_s: float = float("-inf")
    must_end: bool = False
    is_spent: bool = False
    work: asyncio.Task[None] | None = None
    in_round: bool = False
    wish: Literal["serve", "restart", "leave"] = "serve"
    returning: bool = False
    proof_wanted: bool = False
    damaged: set[int] = field(default_factory=set)
    arm: str = ""
    leaving: bool = False

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def is_running(self) -> bool:
        return self.state in RUNNING

    @property
    def url(self) -> str:
        """Where it listens; empty while it does not."""
        return self.server.base_url if self.is_running or self.state == "draining" else ""

    def happens(self, event: Event, reason: str = "") -> None:
        """Moves the state on; what serves nothing any more has no version."""
        self.state, self.reason = advance(self.state, event), reason
        if self.state not in ("healthy", "suspect", "draining"):
            self.version, self.step, self.manifest = -1, -1, None

    def row(self) -> Row:
        """What the registry says of it."""
        start = self.server.start_id if self.url else ""
        arm = LEAVING if self.leaving else self.arm
        return Row(self.name, self.url, self.state, self.version, self.step, self.reason, start, arm)

    def has_hope(self) -> bool:
        """Whether it serves, or may serve again without waiting for restarts to be forgotten."""
        return self.wish != "leave" and (self.state != "dead" or not self.is_spent)

    def describe(self) -> str:
        """e.g. "host-0 is dead: ended with status 1"."""
        return f"{self.name} is {self.state}" + (f": {self.reason}" if self.reason else "")
