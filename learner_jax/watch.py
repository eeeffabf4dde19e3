"""Every host watches every other one, and ends its process with the reason when one of them can't go on.

A thread of its own holds a TCP connection to each other host. A host that dies closes them, one that is stopped or cut
off falls silent on them, and one that fails says so on them. JAX knows none of that in time: device collectives have no
bound, and its own heartbeat aborts the process without a reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from learner_jax import tunnel
from learner_jax.host_wire import (
    Beat,
    Bye,
    Connection,
    Facts,
    Failed,
    Hello,
    HostError,
    Link,
    Message,
    Tunnel,
    WireError,
    is_same,
    proof,
    shown,
)
from learner_jax.roll_call import (
    Roll,
    answered,
    come,
    listed,
    parse_address,
    shown_address,
)

T = TypeVar("T")

#: Beyond its bound, what it takes until every host's process has ended: telling the others, and the last line.
END_WITHIN_S = 10.0
#: A host that fails by itself gets this long to end before the watch ends it.
_UNWIND_S = 8.0
_TELL_S = 1.0
#: Connections that have not yet said who they are: for how long, and how many at a time.
_STRANGER_S = 10.0
_MAX_STRANGERS = 256
#: Host 0 gives up on those that did not come, and says who they are; the others wait a little longer for that.
_ANSWER_S = 10.0
_BACKLOG = 128
#: Beats within the time after which a silent host is dead.
_BEATS = 8
_SLOWEST_BEAT_S = 1.0


@dataclass
class _Peer:
    index: int
    connection: Connection
    heard_s: float
    #: it said that it has finished, or its connection has ended
    has_left: bool = False


@dataclass(frozen=True)
class Joined:
    """How JAX gets to the other hosts.

    Attributes:
      address: of this host, as the others reach it.
      folder: holds the Unix socket of the coordination service, or of the way to it.
    """

    address: str
    folder: Path


def end_process(text: str) -> None:
    """Ends this process with status 1 and `text` as its last line, wherever its other threads are."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        print(f"error: {text}", file=sys.stderr, flush=True)
    os._exit(1)


class Watch:
    """This host's connections to the others, in a thread of its own.

    Args:
      index, count: this host, of how many.
      heartbeat_s: a host that is silent for this long is taken for dead.
      end: ends the process with a message; called at most once, from the watch's thread.
    """

    def __init__(self, index: int, count: int, *, heartbeat_s: float, end: Callable[[str], None] = end_process) -> None:
        self.index, self.count = index, count
        self._heartbeat_s, self._end = heartbeat_s, end
        self._beat_s = min(heartbeat_s / _BEATS, _SLOWEST_BEAT_S)
        #: told of the reason before the process ends
        self.log: Callable[..., None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._peers: dict[int, _Peer] = {}
        self._changed = asyncio.Event()
        self._welcomed = asyncio.Event()
        self._never = asyncio.Event()
        self._roll: Roll | None = None
        self._token, self._folder = b"", Path()
        self._servers: list[asyncio.Server] = []
        self._kept: list[asyncio.Task[None]] = []
        self._is_over = self._is_leaving = False
        self._asked = self._strangers = 0
        self._answers: dict[int, set[int]] = {}

    @property
    def name(self) -> str:
        return f"host {self.index} of {self.count}"

    # What the main thread calls.

    def join(
        self,
        coordinator: str,
        facts: Facts,
        *,
        timeout_s: float,
        secret: str = "",
    ) -> Joined:
        """Finds the other hosts and starts watching them.

        Raises:
          HostError: not all came within `timeout_s`, or they can't train together; all are told the same.
        """
        address = parse_address(coordinator)
        work = self._lead if self.index == 0 else self._follow
        self._thread.start()
        try:
            return self._call(work(address, facts, secret, timeout_s))
        except HostError:
            self._call(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            raise

    def forget_sockets(self) -> None:
        """Removes the names of what JAX has connected to by now."""
        tunnel.remove_folder(self._folder)

    def fail(self, message: str) -> None:
        """Tells the others that this host can't go on; it has some seconds to end, and is ended then."""
        self._call(self._fail(message))

    def settle(self) -> None:
        """Returns once every host was seen alive after this call; if one is not, the process ends meanwhile."""
        self._call(self._settle())

    def leave(self) -> None:
        """Parts from the others, all of which have finished."""
        self._call(self._leave())

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # What runs in the watch's thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(_unexpected)
        self._loop.run_forever()

    async def _lead(self, bind: tuple[str, int], facts: Facts, secret: str, timeout_s: float) -> Joined:
        own = Hello(0, self.count, bind[1], facts, b"", b"")
        self._roll = Roll(own, secret)
        where = await self._listen(bind, own, secret)
        await self._roll.complete(timeout_s, where)
        self._token = secrets.token_bytes(32)
        self._folder = tunnel.private_folder()
        self._roll.welcome(self._token)
        self._begin()
        return Joined(self._roll.guests[0].connection.local_address, self._folder)

    async def _listen(self, bind: tuple[str, int], own: Hello, secret: str) -> str:
        """Listens at host 0's address alone; returns it."""
        try:
            server = await asyncio.start_server(self._visited, *bind, backlog=_BACKLOG)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)
            await self._tell_the_first(bind, own, secret)
            raise HostError(
                f"host 0 can't listen at {shown_address(bind)} (learner.hosts.coordinator): {reason}; it must be host "
                f"0's own address and a free port, and one process alone may have index 0"
            ) from None
        self._servers.append(server)
        return ", ".join(sorted({shown_address(listening.getsockname()) for listening in server.sockets}))

    async def _tell_the_first(self, bind: tuple[str, int], own: Hello, secret: str) -> None:
        """Another process may have index 0 too, and then lets all hosts know."""
        try:
            connection = await come(bind, _TELL_S)
        except HostError:
            return
        try:
            await answered(connection, _signed(own, secret), _ANSWER_S)
        finally:
            connection.close()

    async def _follow(self, coordinator: tuple[str, int], facts: Facts, secret: str, timeout_s: float) -> Joined:
        started = self._loop.time()
        leader = await come(coordinator, timeout_s)
        server = await asyncio.start_server(self._visited, leader.local_address, 0, backlog=_BACKLOG)
        self._servers.append(server)
        port = server.sockets[0].getsockname()[1]
        hello = _signed(Hello(self.index, self.count, port, facts, secrets.token_bytes(16), b""), secret)
        # Host 0 gives up first: it knows who is missing.
        remaining = timeout_s - (self._loop.time() - started)
        try:
            welcome = await answered(leader, hello, max(remaining, 0.0) + _ANSWER_S)
        except HostError:
            leader.close()
            raise
        self._token = welcome.token
        self._welcomed.set()
        self._keep(self._hear(self._add(0, leader)))
        self._begin()
        for index in range(1, self.index):
            await self._link(index, welcome.addresses[index])
        while len(self._peers) < self.count - 1:
            self._changed.clear()
            await self._changed.wait()  # one that does not come has failed, and then this process ends
        self._folder = tunnel.private_folder()
        leader_address = (leader.remote_address, coordinator[1])

        async def tunnelled() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            connection = Connection(*await asyncio.open_connection(*leader_address))
            connection.open()
            connection.send(Tunnel(self._token))
            await connection.opened()
            return connection.reader, connection.writer

        self._servers.append(await tunnel.serve_client(self._folder, tunnelled, self._never))
        return Joined(leader.local_address, self._folder)

    async def _link(self, index: int, address: tuple[str, int]) -> None:
        try:
            connection = Connection(*await asyncio.wait_for(asyncio.open_connection(*address), self._heartbeat_s))
            connection.open()
            connection.send(Link(self.index, self._token))
            await asyncio.wait_for(connection.opened(), self._heartbeat_s)
        except (OSError, EOFError, TimeoutError, WireError) as error:
            reason = type(error).__name__ if isinstance(error, TimeoutError | EOFError) else str(error)
            at = shown_address(address)
            await self._over(
                index,
                f"host {self.index} can't reach host {index} at {at}: {reason}; hosts must reach each other on all "
                f"TCP ports",
            )
        else:
            self._keep(self._hear(self._add(index, connection)))

    async def _close(self) -> None:
        """Ends everything in this thread; what was sent goes out first, as far as that is possible in a moment."""
        for server in self._servers:
            server.close()
        sent = [asyncio.ensure_future(peer.connection.sent()) for peer in self._peers.values()]
        if sent:
            await asyncio.wait(sent, timeout=_TELL_S)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the loop's next turn

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody has connected: a host, or a stranger, who changes nothing."""
        connection = Connection(reader, writer)
        self._strangers += 1
        try:
            try:
                if self._strangers > _MAX_STRANGERS:
                    return
                connection.open()
                await asyncio.wait_for(connection.opened(), _STRANGER_S)
                first = await asyncio.wait_for(connection.receive(), _STRANGER_S)
            finally:
                self._strangers -= 1
            await self._serve(first, connection)
        except (OSError, EOFError, TimeoutError, WireError):
            pass
        finally:
            connection.close()

    async def _serve(self, first: Message, connection: Connection) -> None:
        """Does what the first message asks for, until the connection ends."""
        match first:
            case Hello() if self._roll is not None:
                if await self._roll.admit(first, connection):
                    await self._guest(first, connection, self._roll)
            case Link() if self._roll is None:
                # Host 0's answer may reach that host before this one.
                await asyncio.wait_for(self._welcomed.wait(), _STRANGER_S)
                if is_same(first.token, self._token):
                    await self._hear(self._add(first.index, connection))
            case Tunnel() if self._roll is not None and self._token and is_same(first.token, self._token):
                await tunnel.to_service(connection.reader, connection.writer, self._folder)

    async def _guest(self, hello: Hello, connection: Connection, roll: Roll) -> None:
        peer = _Peer(hello.index, connection, self._loop.time())
        self._peers.setdefault(hello.index, peer)
        try:
            await self._hear(peer)
        finally:
            roll.left(hello)

    def _add(self, index: int, connection: Connection) -> _Peer:
        self._peers[index] = _Peer(index, connection, self._loop.time())
        self._changed.set()
        return self._peers[index]

    def _begin(self) -> None:
        for peer in self._peers.values():
            peer.heard_s = self._loop.time()
        self._keep(self._beat())

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs it in the background; the loop alone would not keep it from being collected."""

        async def kept() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - without its watch this host must not go on
                self._finish(
                    f"{self.name} can't watch the others any more: {type(error).__name__}: {error}", self.index
                )

        self._kept.append(self._loop.create_task(kept()))

    async def _hear(self, peer: _Peer) -> None:
        """Takes in what a host says, until its connection ends."""
        try:
            while True:
                message = await peer.connection.receive()
                peer.heard_s = self._loop.time()
                match message:
                    case Beat():
                        self._heard_beat(peer, message)
                    case Bye():
                        peer.has_left = True
                        self._changed.set()
                    case Failed():
                        await self._over(message.host, shown(message.message), told_by=peer.index)
        except (OSError, EOFError, WireError):
            pass
        expected = peer.has_left or self._is_leaving or not self._token or self._peers.get(peer.index) is not peer
        peer.has_left = True
        self._changed.set()
        if not expected:
            await self._over(
                peer.index,
                f"host {peer.index} died: its process was killed or its machine went down; look at its log, and at its "
                f"machine's for a kill or a lack of memory",
            )

    def _heard_beat(self, peer: _Peer, beat: Beat) -> None:
        if beat.ask:
            peer.connection.send(Beat(answer=beat.ask))
        if beat.answer in self._answers:
            self._answers[beat.answer].add(peer.index)
            self._changed.set()

    async def _beat(self) -> None:
        """Sends beats and looks who has not sent any for too long."""
        last_s = self._loop.time()
        while True:
            await asyncio.sleep(self._beat_s)
            now_s = self._loop.time()
            if now_s - last_s > self._heartbeat_s / 2:  # this process was itself stopped, and can't judge the others
                for peer in self._peers.values():
                    peer.heard_s = now_s
            last_s = now_s
            for peer in self._peers.values():
                if not peer.has_left:
                    peer.connection.send(Beat())
            await self._judge(now_s)

    async def _judge(self, now_s: float) -> None:
        silent_s = {p.index: now_s - p.heard_s for p in self._peers.values() if not p.has_left}
        if self._is_leaving or not silent_s or max(silent_s.values()) < self._heartbeat_s:
            return
        # Those that fell silent together did so for one reason; their last beats are a little apart.
        hosts = [index for index, silence in silent_s.items() if silence > self._heartbeat_s - 3 * self._beat_s]
        cut_off = len(hosts) == self.count - 1 > 1
        likely = (
            "this host was cut off from the network" if cut_off else "its process or machine is stopped, or cut off"
        )
        heard = f"heard nothing from {listed(hosts)} for {self._heartbeat_s:g} s (learner.hosts.heartbeat_timeout_s)"
        await self._over(hosts[0], f"host {self.index} {heard}: {likely}", own=f"it {heard}: {likely}")

    async def _over(self, host: int, message: str, *, own: str | None = None, told_by: int | None = None) -> None:
        """Another host, or this one in another's eyes, can't go on: ends this process, and tells the others first.

        `own` is the message in this host's own words.
        """
        if self._is_over:
            return
        self._is_over = True
        await self._tell(Failed(host, message))
        if host == self.index:
            text = f"{self.name} stops, because host {told_by} gave it up: {message}; was this process stopped?"
        else:
            text = f"{self.name} stops, because {own or message}"
        self._finish(text, host)

    async def _fail(self, message: str) -> None:
        if self._is_over:
            await asyncio.Event().wait()  # the process ends for the reason that came first
        self._is_over = True
        await self._tell(Failed(self.index, f"host {self.index} failed: {message}"))
        self._loop.call_later(_UNWIND_S, self._finish, f"{self.name} failed: {message}", self.index)

    async def _tell(self, message: Message) -> None:
        """Sends it to every host, as far as that is possible in a moment."""
        peers = [peer for peer in self._peers.values() if not peer.has_left]
        for peer in peers:
            peer.connection.send(message)
        sent = [asyncio.ensure_future(peer.connection.sent()) for peer in peers]
        if sent:
            await asyncio.wait(sent, timeout=_TELL_S)

    def _finish(self, text: str, host: int) -> None:
        if self.log is not None:
            # In a thread: a folder that is gone with a host's network must not keep this process.
            logging = threading.Thread(target=self._write, args=(self.log, text, host), daemon=True)
            logging.start()
            logging.join(_TELL_S)
        self._end(text)

    @staticmethod
    def _write(log: Callable[..., None], text: str, host: int) -> None:
        with contextlib.suppress(Exception):
            log("host_failed", host=host, error=text)

    async def _settle(self) -> None:
        self._asked += 1
        number = self._asked
        answered = self._answers[number] = set[int]()
        for peer in self._peers.values():
            peer.connection.send(Beat(ask=number))
        while self._is_over or len(answered) < self.count - 1:
            self._changed.clear()
            await self._changed.wait()
        del self._answers[number]

    async def _leave(self) -> None:
        self._is_leaving = True
        await self._tell(Bye())
        deadline = self._loop.time() + self._heartbeat_s
        while (remaining := deadline - self._loop.time()) > 0 and not all(p.has_left for p in self._peers.values()):
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), remaining)


def _signed(hello: Hello, secret: str) -> Hello:
    return msgspec.structs.replace(hello, proof=proof(secret, hello)) if secret else hello


def _unexpected(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Strangers may hang up at any moment; that is nobody's concern."""
    if not isinstance(context.get("exception"), OSError | EOFError):
        loop.default_exception_handler(context)
