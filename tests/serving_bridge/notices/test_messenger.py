"""Messages: signed, tried again, given up in the end, and never in the way of a decision."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.canary import CANARY
from serving_bridge.database import Database, open_database
from serving_bridge.notices import Messenger
from tests.support.canary_world import POLICY, CanaryWorld, canary_world
from tests.support.queue_engines import Clock
from tests.support.webhook_receiver import SECRET, Receiver, receiver

__all__ = ["canary_world", "receiver"]  # fixtures


@pytest.fixture
def database(tmp_path: Any) -> Iterator[Database]:
    database = open_database(tmp_path / "index.sqlite", schema=CANARY)
    yield database
    database.close()


def put(database: Database, address: str) -> None:
    insert = "INSERT INTO notices (address, body, tries, due_s, state) VALUES (?, ?, 0, 0, 'waiting')"
    database.write(lambda session: session.execute(insert, (address, '{"event":"next"}')))


def states(database: Database) -> list[tuple[Any, ...]]:
    return database.read(lambda session: session.execute("SELECT state, tries, error FROM notices ORDER BY sequence"))


def test_a_message_is_signed_and_a_refused_one_comes_again(database: Database, receiver: Receiver) -> None:
    clock = Clock()
    messenger = Messenger(database, SECRET, clock=clock)
    receiver.statuses = [500, 302]
    put(database, f"http://127.0.0.1:{receiver.server_port}/hook")
    assert messenger.send_due() == 1
    assert states(database) == [("waiting", 1, "status 500")]
    assert messenger.send_due() == 0, "not before its pause is over"
    clock.now_s += 3
    assert messenger.send_due() == 1
    assert states(database) == [("waiting", 2, "status 302")], "no redirect is followed"
    clock.now_s += 5
    messenger.send_due()
    assert states(database) == [("sent", 3, "")]
    headers, body = receiver.got[-1]
    signed = hmac.new(SECRET, f"{headers['X-Weir-Timestamp']}.{body.decode()}".encode(), hashlib.sha256).hexdigest()
    assert headers["X-Weir-Signature"] == f"sha256={signed}"
    assert len({headers["X-Weir-Delivery"] for headers, _ in receiver.got}) == 1
    assert json.loads(body) == {"event": "next"}


def test_what_nobody_takes_is_given_up_in_the_end(database: Database) -> None:
    clock = Clock()
    messenger = Messenger(database, SECRET, clock=clock)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        put(database, f"http://127.0.0.1:{unused.getsockname()[1]}/")
        for _ in range(12):
            messenger.send_due()
            clock.now_s += 601
    ((state, tries, error),) = states(database)
    assert (state, tries) == ("given_up", 10)
    assert error


def test_one_that_hangs_delays_neither_others_nor_a_decision(canary_world: CanaryWorld, receiver: Receiver) -> None:
    world = canary_world
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hangs = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        takes = f"http://127.0.0.1:{receiver.server_port}/"
        controller = world.start(policy=POLICY.model_copy(update={"webhooks": (hangs, takes)}))
        messenger = Messenger(open_database(world.url, schema=CANARY), SECRET, deadline_s=3.0)
        world.rollouts._db.write(lambda session: session.execute("UPDATE notices SET due_s = 0"))
        sending = threading.Thread(target=messenger.send_due)
        sending.start()
        world.pass_time()
        assert controller.look() is not None
        assert sending.is_alive(), "the look waited for the one that hangs"
        sending.join(60)
        messenger.close()
    assert json.loads(receiver.got[0][1])["event"] == "started"
    rows = world.rollouts._db.read(
        lambda session: session.execute("SELECT state, address FROM notices WHERE tries > 0 ORDER BY sequence")
    )
    assert rows == [("waiting", hangs), ("sent", takes)]


def test_of_two_messengers_one_sends(canary_world: CanaryWorld, receiver: Receiver) -> None:
    clock, url = Clock(), canary_world.url
    both = [Messenger(open_database(url, schema=CANARY), SECRET, clock=clock) for _ in range(2)]
    put(both[0]._db, f"http://127.0.0.1:{receiver.server_port}/")
    meanwhile = list[int]()
    post = both[0]._all

    async def slowly(due: list) -> list[str]:
        meanwhile.append(both[1].send_due())
        return await post(due)

    both[0]._all = slowly  # type: ignore[method-assign]
    assert (both[0].send_due(), meanwhile, len(receiver.got)) == (1, [0], 1)
    put(both[0]._db, f"http://127.0.0.1:{receiver.server_port}/")
    both[0]._db.write(lambda session: both[0]._claimed(session, clock.now_s))  # and killed
    assert both[1].send_due() == 0
    clock.now_s += 31
    assert both[1].send_due() == 1
    for messenger in both:
        messenger.close()


def test_the_last_message_is_sent_by_who_ends(database: Database, tmp_path: Path, receiver: Receiver) -> None:
    messenger = Messenger(open_database(tmp_path / "index.sqlite", schema=CANARY), SECRET)
    messenger.start()
    put(database, f"http://127.0.0.1:{receiver.server_port}/")
    messenger.close()
    assert states(database) == [("sent", 1, "")]
