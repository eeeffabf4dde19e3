"""Who connects to a host's watch: hosts that prove it are heard, and a stranger changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from learner_jax.hosts import watch as module
from learner_jax.hosts.roll_call import Roll
from learner_jax.hosts.watch import Watch
from learner_jax.hosts.wire import Hello, HostError, Link, Message, Tunnel
from tests.support.virtual_time import run

MAGIC = b"weir-hosts-1\n"
TOKEN = b"of these hosts"


class Writer:
    """The other end sees what is written, and when it is hung up on."""

    def __init__(self) -> None:
        self.written = b""
        self.closed_s: float | None = None

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        self.closed_s = asyncio.get_running_loop().time()

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return "10.0.0.9", 5009


def said(message: Message) -> bytes:
    payload = msgspec.msgpack.encode(message)
    return MAGIC + len(payload).to_bytes(4, "big") + payload


def visit(watch: Watch, data: bytes = b"") -> tuple[asyncio.StreamReader, Writer, asyncio.Task[None]]:
    """Somebody connects, and says this."""
    reader, writer = asyncio.StreamReader(), Writer()
    reader.feed_data(data)
    typed: Any = writer
    return reader, writer, asyncio.create_task(watch._visited(reader, typed))


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Of host 1 of 3, which was welcomed."""
    found = Watch(1, 3, heartbeat_s=8.0, end=lambda text: None)
    found._token = TOKEN
    found._welcomed.set()
    yield found
    found._loop.close()


def known(watch: Watch) -> set[int]:
    return set(watch._peers._peers)


def test_a_host_that_has_the_token_is_heard_until_it_hangs_up(watch: Watch) -> None:
    async def story() -> None:
        reader, writer, visiting = visit(watch, said(Link(2, TOKEN)))
        await asyncio.sleep(1000)
        assert (known(watch), writer.closed_s, writer.written) == ({2}, None, MAGIC)
        assert watch._strangers == 0, "it is none any more"
        reader.feed_eof()
        await visiting
        assert writer.closed_s == 1000

    run(story())


@pytest.mark.parametrize(
    "data",
    [
        said(Link(2, b"guessed")),
        said(Link(2, b"")),
        said(Hello(2, 3, 5002, {}, b"", b"")),
        said(Tunnel(TOKEN)),
        MAGIC + b"\xff\xff\xff\xff",
        MAGIC + (3).to_bytes(4, "big") + b"abc",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["another token", "no token", "hello", "tunnel", "too large", "no message", "browser"],
)
def test_a_stranger_is_hung_up_on_at_once_and_changes_nothing(watch: Watch, data: bytes) -> None:
    async def story() -> None:
        _, writer, visiting = visit(watch, data)
        await visiting
        assert (writer.closed_s, known(watch), watch._strangers) == (0, set(), 0)
        assert writer.written == MAGIC

    run(story())


@pytest.mark.parametrize("data", [b"", MAGIC])
def test_who_says_nothing_is_hung_up_on_after_ten_seconds(watch: Watch, data: bytes) -> None:
    async def story() -> None:
        _, writer, visiting = visit(watch, data)
        await asyncio.sleep(9)
        assert watch._strangers == 1
        await visiting
        assert (writer.closed_s, watch._strangers) == (10, 0)

    run(story())


def test_no_more_strangers_than_256_are_listened_to_at_a_time(watch: Watch) -> None:
    async def story() -> None:
        visits = [visit(watch) for _ in range(module._MAX_STRANGERS + 1)]
        await asyncio.sleep(1)
        assert [writer.closed_s for _, writer, _ in visits] == [None] * module._MAX_STRANGERS + [0]
        assert visits[-1][1].written == b""
        await asyncio.sleep(10)
        assert watch._strangers == 0

    run(story())


def test_a_host_whose_welcome_came_first_is_waited_with(watch: Watch) -> None:
    async def story() -> None:
        watch._token = b""
        watch._welcomed.clear()
        early = visit(watch, said(Link(2, TOKEN)))
        guess = visit(watch, said(Link(2, b"")))
        await asyncio.sleep(5)
        assert known(watch) == set()
        watch._token = TOKEN
        watch._welcomed.set()
        await asyncio.sleep(1)
        assert (known(watch), early[1].closed_s, guess[1].closed_s) == ({2}, None, 5)
        early[2].cancel()
        watch._welcomed.clear()
        late = visit(watch, said(Link(0, TOKEN)))
        await late[2]
        assert late[1].closed_s == 16

    run(story())


def test_host_0_takes_hosts_and_their_jax_and_no_links() -> None:
    watch = Watch(0, 2, heartbeat_s=8.0, end=lambda text: None)
    own = Hello(0, 2, 5000, {}, b"", b"")

    async def story() -> None:
        watch._roll = Roll(own)
        reader, writer, visiting = visit(watch, said(Hello(1, 2, 5001, {}, b"", b"")))
        await asyncio.sleep(1)
        assert (known(watch), watch._roll.missing, writer.closed_s) == ({1}, [], None)
        for data in (said(Tunnel(b"")), said(Tunnel(TOKEN)), said(Link(1, b""))):
            _, other, ending = visit(watch, data)
            await ending
            assert other.closed_s == 1
        reader.feed_eof()
        await visiting
        assert watch._roll.ended == [1]
        watch._roll.closed = "they train"
        _, refused, ending = visit(watch, said(Hello(1, 2, 5001, {}, b"", b"")))
        await ending
        assert b"they train" in refused.written
        assert watch._roll.ended == [1]

    run(story())
    watch._loop.close()


def test_only_what_strangers_do_is_nobodys_concern() -> None:
    told: list[dict[str, Any]] = []

    class Loop:
        def default_exception_handler(self, context: dict[str, Any]) -> None:
            told.append(context)

    loop: Any = Loop()
    others: list[dict[str, Any]] = [{"exception": ValueError("a bug")}, {"message": "a task was destroyed"}]
    for context in [{"exception": ConnectionResetError()}, {"exception": asyncio.IncompleteReadError(b"", 4)}, *others]:
        module._unexpected(loop, context)
    assert told == others


def test_the_thread_of_the_watch_has_that_handler() -> None:
    watch = Watch(1, 2, heartbeat_s=8.0, end=lambda text: None)
    watch._thread.start()

    async def handler() -> Any:
        return asyncio.get_running_loop().get_exception_handler()

    assert watch._call(handler()) is module._unexpected
    watch._loop.call_soon_threadsafe(watch._loop.stop)
    watch._thread.join()
    watch._loop.close()


def test_host_0_gives_up_first_and_is_waited_for_a_little_longer(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows which host is missing."""
    waited: list[float] = []

    class Leader:
        local_address, closed = "127.0.0.1", False

        def close(self) -> None:
            self.closed = True

    leader = Leader()

    async def come(address: tuple[str, int], timeout_s: float) -> Any:
        return leader

    async def answered(connection: Any, hello: Hello, timeout_s: float) -> Any:
        assert (connection, hello.index, hello.count, len(hello.nonce)) == (leader, 1, 3, 16)
        waited.append(timeout_s)
        raise HostError("hosts 2 did not come")

    monkeypatch.setattr(module, "come", come)
    monkeypatch.setattr(module, "answered", answered)

    async def story(timeout_s: float) -> None:
        with pytest.raises(HostError, match="hosts 2 did not come"):
            await watch._follow(("127.0.0.1", 1), {}, "", timeout_s)
        for server in watch._servers:
            server.close()

    for timeout_s in (60.0, -5.0):  # the second is over before there was a connection
        asyncio.run(story(timeout_s))
    assert waited == [pytest.approx(70, abs=5), 10]
    assert leader.closed
