"""Serves the page until it is stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from serving_bridge.canary import Controller, ObservationLog, Place
from tools.dashboard import access
from tools.dashboard import serve as dashboard
from tools.rollout_page.app import build_rollout_app
from tools.rollout_page.drift import Drift


def serve(
    place: Place,
    holder: Callable[[], str],
    log: ObservationLog,
    *,
    host: str,
    port: int,
    token: str | None,
    more_hosts: Iterable[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Serves the page of a namespace until SIGINT or SIGTERM.

    Args:
      holder: a name that no other process or request has, for the registry's lease.
      log: of the answers, for their drift.
      port: 0 takes any free one.
      token: the admin key. Without one the page is for loopback alone, and has no buttons.

    Raises:
      DashboardError: others could reach the page without a token, or the address can't be had.
    """
    names = list(more_hosts)
    access.access_to(host, port, token, names)  # refused before anything is read
    told = "Ctrl-C ends it" if token else "Ctrl-C ends it; without a token it has no buttons"
    drift = Drift(log, place.namespace)
    dashboard.run(
        lambda got: build_rollout_app(
            place, access.access_to(host, got, token, names), lambda: Controller(place, holder=holder()), drift
        ),
        host,
        port,
        lambda address: say(f"{address}  ({told})"),
    )
