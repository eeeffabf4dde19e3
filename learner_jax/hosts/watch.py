"""Every host watches every other one, and ends its process with the reason when one of them can't go on.

A thread of its own holds a TCP connection to each other host. A host that dies closes them, one that is stopped or cut
off falls silent on them, and one that fails says so on them. JAX knows none of that in time: device collectives have no
bound, and its own heartbeat aborts the process without a reason.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from learner_jax.hosts import tunnel
from learner_jax.hosts.peers import Peers, end_process
from learner_jax.hosts.roll_call import (
    Roll,
    answered,
    come,
    parse_address,
    shown_address,
)
from learner_jax.hosts.wire import (
    Connection,
    Facts,
    Hello,
    HostError,
    Link,
    Message,
    Tunnel,
    WireError,
    is_same,
    proof,
)

T = TypeVar("T")

#: Connections that have not yet said who they are: for how long, and how many at a time.
_STRANGER_S = 10.0
_MAX_STRANGERS = 256
#: Host 0 gives up on those that did not come, and says who they are; the others wait a little longer for that.
_ANSWER_S = 10.0
_BACKLOG = 128
#: How long the process that has index 0 first may take to be found.
_FIRST_S = 1.0


@dataclass(frozen=True)
class Joined:
    """How JAX gets to the other hosts.

    Attributes:
      address: of this host, as the others reach it.
      folder: holds the Unix socket of the coordination service, or of the way to it.
    """

    address: str
    folder: Path


class Watch:
    """This host's connections to the others, in a thread of its own.

    Args:
      index, count: this host, of how many.
      heartbeat_s: a host that is silent for this long is taken for dead.
      end: ends the process with a message; called at most once, from the watch's thread.
    """

    def __init__(self, index: int, count: int, *, heartbeat_s: float, end: Callable[[str], None] = end_process) -> None:
        self.index, self.count = index, count
        self._peers = Peers(index, count, heartbeat_s=heartbeat_s, end=end)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._welcomed, self._never = asyncio.Event(), asyncio.Event()
        self._roll: Roll | None = None
        self._token, self._folder = b"", Path()
        self._servers: list[asyncio.Server] = []
        self._strangers = 0

    def log_ends(self, log: Callable[..., None]) -> None:
        """Has `log` told of the reason before the process is ended."""
        self._peers.log = log

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
        self._call(self._peers.fail(message))

    def settle(self) -> None:
        """Returns once every host was seen alive after this call; if one is not, the process ends meanwhile."""
        self._call(self._peers.settle())

    def leave(self) -> None:
        """Parts from the others, all of which have finished."""
        self._call(self._peers.leave())

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
        self._peers.begin()
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
            connection = await come(bind, _FIRST_S)
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
        self._peers.keep(self._peers.hear(self._peers.add(0, leader)))
        self._peers.begin()
        for index in range(1, self.index):
            await self._link(index, welcome.addresses[index])
        await self._peers.all_here()
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
            connection = Connection(*await asyncio.wait_for(asyncio.open_connection(*address), self._peers.heartbeat_s))
            connection.open()
            connection.send(Link(self.index, self._token))
            await asyncio.wait_for(connection.opened(), self._peers.heartbeat_s)
        except (OSError, EOFError, TimeoutError, WireError) as error:
            reason = type(error).__name__ if isinstance(error, TimeoutError | EOFError) else str(error)
            at = shown_address(address)
            await self._peers.over(
                index,
                f"host {self.index} can't reach host {index} at {at}: {reason}; hosts must reach each other on all "
                f"TCP ports",
            )
        else:
            self._peers.keep(self._peers.hear(self._peers.add(index, connection)))

    async def _close(self) -> None:
        """Ends everything in this thread; what was sent goes out first, as far as that is possible in a moment."""
        for server in self._servers:
            server.close()
        await self._peers.sent()
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
                    await self._peers.hear(self._peers.add(first.index, connection))
            case Tunnel() if self._roll is not None and self._token and is_same(first.token, self._token):
                await tunnel.to_service(connection.reader, connection.writer, self._folder)

    async def _guest(self, hello: Hello, connection: Connection, roll: Roll) -> None:
        try:
            await self._peers.hear(self._peers.add(hello.index, connection))
        finally:
            roll.left(hello)


def _signed(hello: Hello, secret: str) -> Hello:
    return msgspec.structs.replace(hello, proof=proof(secret, hello)) if secret else hello


def _unexpected(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Strangers may hang up at any moment; that is nobody's concern."""
    if not isinstance(context.get("exception"), OSError | EOFError):
        loop.default_exception_handler(context)
