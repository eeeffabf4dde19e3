"""Brings what users said of a run's answers to the rollouts of a registry, again and again."""

from __future__ import annotations

import argparse
import hashlib
import threading
import time

from rich.console import Console

from serving_bridge.canary import CanaryError, observe_reactions
from serving_bridge.feedback import FeedbackStore, reactions
from serving_bridge.settings import FeedbackSettings
from tools.assembly import StopRequest, database_of, opened_recordings
from tools.canary_place import CanaryPlace

_TIMEOUT_S = 10.0
#: also how long it takes to stop
_EVERY_S = 1.0


def follow_feedback(opened: CanaryPlace, arguments: argparse.Namespace, console: Console) -> int:
    """Reads what settled, and goes on until it is stopped; with `--once` to the end of what there is.

    Raises:
      CanaryError: `--settle-s` is below 0.
      DatabaseError: the run has no database.
    """
    if not 0 <= arguments.settle_s <= 1e9:
        raise CanaryError(f"--settle-s is {arguments.settle_s:g}, expected seconds from 0 on")
    url = database_of(arguments.run)
    source = "feedback:" + hashlib.sha256(f"{url}\0{arguments.namespace}".encode()).hexdigest()[:32]
    stop, nap, total = StopRequest().install(), threading.Event(), 0
    with opened_recordings(url, timeout_s=_TIMEOUT_S) as (database, _):
        store = FeedbackStore(database, FeedbackSettings(), checker=None)
        while not stop():
            store.settle()
            until_s = time.time() - arguments.settle_s
            before = opened.log.mark(source)
            total += observe_reactions(
                opened.log,
                arguments.namespace,
                source,
                lambda after, until_s=until_s: reactions(database, after, until_s=until_s),  # type: ignore[misc]
                now_s=time.time(),
            )
            if opened.log.mark(source) > before:
                continue
            if arguments.once:
                break
            nap.wait(_EVERY_S)
    console.print(f"{total:,} answered requests are observed")
    return 0


def add_feedback_command(one: argparse.ArgumentParser) -> None:
    one.add_argument("--run", required=True, metavar="RUN", help="a run's directory, or the URL of its database")
    one.add_argument(
        "--settle-s", type=float, default=300.0, metavar="S", help="how long users have to react (default: 300)"
    )
    one.add_argument("--once", action="store_true", help="end with what there is")
