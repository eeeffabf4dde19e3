"""The first process of the sandbox: it parts from the answer's side, waits for one request, and judges it.

The fork comes before the request, so that no process of the answer's side ever held a test or the nonce. It reads and
writes the host's pipes alone.
"""

from __future__ import annotations

import os

from rewards.code.guest import tester, text, walls
from rewards.code.guest.link import receive, send
from rewards.code.guest.process import Alarm, AnswerProcess
from rewards.code.guest.spawner import Spawner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_MAX_REQUEST_BYTES = 64 << 20


def main() -> NoReturn:
    """Reads the setup from descriptor 0, says that it is ready on descriptor 1, and serves one request."""
    status = 1
    try:
        _serve()
        status = 0
    finally:
        os._exit(status)


def _serve() -> None:
    setup = text.loads(receive(0, _MAX_REQUEST_BYTES))
    walls.hide()
    walls.limit(setup["outer_limits"])
    if setup["outer_filter"]:
        walls.filter_calls(bytes.fromhex(setup["outer_filter"]))
    os.environ.clear()
    orders, spawner_orders = _pipe()
    spawner_news, news = _pipe()
    asking, asked = _pipe()
    replying, replies = _pipe()
    # Of each pair the first end writes: named by the side that holds it.
    if os.fork() == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1):
            os.dup2(null, standard)
        kept = (spawner_orders, spawner_news, asked, replying)
        walls.close_others({0, 1, 2, *kept})
        Spawner(*kept, setup).serve()
    for descriptor in (spawner_orders, spawner_news, asked, replying):
        os.close(descriptor)
    alarm = Alarm()
    process = AnswerProcess(orders, news, asking, replies, alarm)
    process.start()
    send(1, b"ready")
    request = text.loads(receive(0, _MAX_REQUEST_BYTES))
    nonce = request.pop("nonce")
    outcome = tester.Tester(process, alarm, request).judge()
    send(1, tester.report(outcome, nonce))


def _pipe() -> tuple[int, int]:
    """Writing and reading end."""
    reading, writing = os.pipe()
    return writing, reading
