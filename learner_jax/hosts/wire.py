"""What the hosts of a learner say to each other over TCP: framed, typed messages, and who may say them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from typing import TypeAlias

import msgspec

from learner_jax.runtime import WeirError, printable

#: Opens every connection; whoever sends something else, such as a browser, is hung up on.
_MAGIC = b"weir-hosts-1\n"
_MAX_FRAME_BYTES = 4 << 20
_MAX_TEXT = 4000

Facts: TypeAlias = dict[str, dict[str, str]]


class Hello(msgspec.Struct, tag=True):
    """A host asks host 0 to join; answered by `Welcome` or `Refused`.

    Attributes:
      port: where it listens for the others.
      facts: what must be the same on all hosts, by section and name.
      nonce, proof: that it knows the secret, if there is one.
    """

    index: int
    count: int
    port: int
    facts: Facts
    nonce: bytes
    proof: bytes


class Welcome(msgspec.Struct, tag=True):
    """All hosts have come: where each of the others listens, and what proves later that one is of them."""

    addresses: dict[int, tuple[str, int]]
    token: bytes


class Refused(msgspec.Struct, tag=True):
    """The hosts can't train together."""

    message: str


class Link(msgspec.Struct, tag=True):
    """A host that was welcomed opens its connection to another one."""

    index: int
    token: bytes


class Tunnel(msgspec.Struct, tag=True):
    """What follows on this connection is between a host's JAX and the coordination service of host 0."""

    token: bytes


class Beat(msgspec.Struct, tag=True):
    """The sender lives; sent all the time. With a number it asks for, or is, the answer of the same number."""

    ask: int = 0
    answer: int = 0


class Failed(msgspec.Struct, tag=True):
    """The sender stops, because of `host`."""

    host: int
    message: str


class Bye(msgspec.Struct, tag=True):
    """The sender has finished, as all have."""


Message: TypeAlias = Hello | Welcome | Refused | Link | Tunnel | Beat | Failed | Bye
_decoder = msgspec.msgpack.Decoder(Message)


class HostError(WeirError, RuntimeError):
    """The hosts of a learner can't go on together; the message names the host and what was waited for."""


class WireError(WeirError):
    """Not a message of ours, or not the one that is expected here."""


class Connection:
    """A TCP connection that carries messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @property
    def local_address(self) -> str:
        return str(self.writer.get_extra_info("sockname")[0])

    @property
    def remote_address(self) -> str:
        return str(self.writer.get_extra_info("peername")[0])

    def open(self) -> None:
        """Says that this is no stranger's; the first thing that the side that connected sends."""
        self.writer.write(_MAGIC)

    async def opened(self) -> None:
        """Waits for the other side's `open`."""
        if await self.reader.readexactly(len(_MAGIC)) != _MAGIC:
            raise WireError("this is not a host of a learner")

    def send(self, message: Message) -> None:
        payload = msgspec.msgpack.encode(message)
        self.writer.write(len(payload).to_bytes(4, "big") + payload)

    async def receive(self) -> Message:
        """The next message.

        Raises:
          WireError: it is none of ours.
          EOFError, OSError: the connection ended.
        """
        size = int.from_bytes(await self.reader.readexactly(4), "big")
        if size > _MAX_FRAME_BYTES:
            raise WireError(f"a message of {size} bytes")
        try:
            return _decoder.decode(await self.reader.readexactly(size))
        except msgspec.MsgspecError as error:
            raise WireError(f"not a message of ours: {error}") from error

    async def sent(self) -> None:
        """Returns once what was sent is on its way, or can't be."""
        with contextlib.suppress(OSError):
            await self.writer.drain()

    def close(self) -> None:
        self.writer.close()


def proof(secret: str, hello: Hello) -> bytes:
    """What only a host that knows the secret can add to its `Hello`."""
    signed = msgspec.msgpack.encode([hello.index, hello.count, hello.port, hello.nonce, hello.facts])
    return hmac.digest(secret.encode(), signed, hashlib.sha256)


def is_same(mine: bytes, theirs: bytes) -> bool:
    return hmac.compare_digest(mine, theirs)


def shown(text: str) -> str:
    """A text of another process, for a terminal."""
    text = printable(text)
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."
