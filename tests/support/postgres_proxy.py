"""A proxy before a PostgreSQL server that breaks connections where it matters."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

_COMMIT = b"COMMIT\x00"
_READY = b"Z\0\0\0\5T"  # ReadyForQuery inside a transaction
_ROWS = b"INSERT INTO groups"


def _last_word() -> bytes:
    """An ErrorResponse as a server sends it that is shut down (PostgreSQL's protocol, "Message Formats")."""
    fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to unexpected postmaster exit\0\0"
    return b"E" + struct.pack("!I", 4 + len(fields)) + fields


_GOODBYE = _last_word()


class Proxy:
    """Stands between client and server; ends the connection around the next commit that it is told to.

    Attributes:
      cut: "before" the server hears of the commit; "after" it has answered; "late": the client's end goes at once, and
        the server hears of the commit a moment later; "goodbye": after its answers to a pipeline of
        rows comes the server's last word, and the connection stays open. None: it only passes on.
    """

    def __init__(self, server_socket: str):
        self.cut: str | None = None
        self._server_socket = server_socket
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._server_socket)
            threading.Thread(target=self._back, args=(server, client), daemon=True).start()
            threading.Thread(target=self._forth, args=(client, server), daemon=True).start()

    def _forth(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            while data := _received(client):
                if self.cut == "goodbye" and _ROWS in data:
                    self.cut, self._parting = None, client
                cut = self.cut if _COMMIT in data else None
                if cut is None:
                    server.sendall(data)
                    continue
                self.cut = None
                if cut == "after":
                    self._muted = client
                    server.sendall(data)
                    time.sleep(0.05)
                client.shutdown(socket.SHUT_RDWR)
                if cut == "late":
                    time.sleep(0.3)
                    server.sendall(data)
                    time.sleep(0.05)
                break
            server.shutdown(socket.SHUT_RDWR)  # closing alone doesn't wake who reads from it

    _muted: socket.socket | None = None
    _parting: socket.socket | None = None

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        while data := _received(server):
            if self._muted is client:
                continue
            if self._parting is client and _READY in data:
                data = data[: data.index(_READY)] + _GOODBYE
                self._muted, self._parting = client, None
            try:
                client.sendall(data)
            except OSError:
                return


class Gate:
    """Passes bytes on to a server's local socket, until it is shut.

    Attributes:
      is_silent: what is sent, and who connects, waits for ever, as behind a firewall.
    """

    def __init__(self, server_socket: str) -> None:
        self.is_silent = False
        self._server_socket, self._is_refusing = server_socket, False
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def refuse(self, *, refuse: bool) -> None:
        """Ends all connections, and refuses new ones until it is called again."""
        self._is_refusing = refuse
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.refuse(refuse=True)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._is_refusing:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._server_socket)
            self._open += [client, server]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        while data := _received(source):
            while self.is_silent and not self._is_refusing:
                time.sleep(0.05)
            try:
                target.sendall(data)
            except OSError:
                break
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def _received(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 16)
    except OSError:
        return b""
