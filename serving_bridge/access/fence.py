"""Which weight round a replica still obeys: what a round asked for that another has followed is not carried out.

A request that its sender gave up on may arrive minutes late. A late /update_weight_version would name weights that no
probe has passed, a late /resume would sample from them. So each round takes a fencing token, a number that only grows,
and a replica refuses numbers below that of the last round that got its lease.
"""

from __future__ import annotations

from serving_bridge.access.refusals import Refused

#: header of a control request that changes something: the fencing token of its round, a decimal number
FENCING_HEADER = "X-Weir-Fencing-Token"
#: gives the next token; answered by the gate itself
ROUND_ROUTE = "/weir_round"
#: pauses, applies what was staged, and answers the golden prompts; names the weights and ends the pause; by the plugin
SWAP_ROUTE, SERVE_ROUTE = "/weir_swap", "/weir_serve"

_ROUTES = frozenset(
    {
        "/pause",
        "/resume",
        "/abort_requests",
        "/start_weight_update",
        "/update_weights",
        "/update_weight_version",
        SWAP_ROUTE,
        SERVE_ROUTE,
    }
)
_STAGE = "weir_stage"
#: methods of /collective_rpc that change something; the others only look, or renew a lease that is held
_CALLS = frozenset({_STAGE, "weir_release"})


class Fence:
    """The tokens of one start of a server. Not for several processes: they would give the same token twice."""

    def __init__(self) -> None:
        self._given = 0
        self._obeyed = 0

    def next_token(self) -> int:
        """A token greater than all before."""
        self._given += 1
        return self._given

    def check(self, path: str, call: str | None, token: int | None) -> None:
        """Whether a control request may be carried out.

        Args:
          path: its route.
          call: its method if the route is /collective_rpc.
          token: what its header said; None without one.

        Raises:
          Refused: it has no token of this server (400), or one of a round that another has followed (409).
        """
        if path not in _ROUTES and call not in _CALLS:
            return
        if token is None or not 0 < token <= self._given:
            raise Refused(400, f"expected {FENCING_HEADER}, a number that POST {ROUND_ROUTE} of this start gave")
        if token < self._obeyed:
            raise Refused(409, f"round {token} was followed by round {self._obeyed}: its requests come too late")

    def answered(self, call: str | None, token: int | None, status: int) -> None:
        """To be told of each answer: a round that was given the lease is the one to obey, and none before it."""
        if call == _STAGE and token is not None and status == 200:
            self._obeyed = max(self._obeyed, token)
