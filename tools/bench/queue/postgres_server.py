"""A PostgreSQL server of our own in a temporary folder, for benchmarks and tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from learner_jax.runtime import WeirError

_TIMEOUT_S = 120
_OTHER_USER = "postgres"  # servers refuse to run as root


class NoServerError(WeirError, RuntimeError):
    """Says why none can be had here."""


@dataclass(frozen=True)
class PostgresServer:
    """A server of our own; only local processes reach its socket."""

    folder: Path
    binaries: Path

    @property
    def url(self) -> str:
        return f"postgresql://{_OTHER_USER}@/postgres?host={quote(str(self.folder), safe='')}"

    def start(self) -> None:
        self._control("start", "-w", "-l", str(self.folder / "log"))

    def stop(self, mode: str = "immediate") -> None:
        """ "immediate" is a crash: nothing is flushed, the next start recovers from the log."""
        self._control("stop", "-m", mode)

    def kill(self) -> None:
        """SIGKILL to the server process."""
        os.kill(int((self.folder / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    def _control(self, *arguments: str) -> None:
        _run([str(self.binaries / "pg_ctl"), "-D", str(self.folder / "data"), *arguments])


def _run(command: list[str]) -> None:
    if os.getuid() == 0:
        command = ["setpriv", f"--reuid={_OTHER_USER}", f"--regid={_OTHER_USER}", "--clear-groups", *command]
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd="/",
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise NoServerError(f"{command} took longer than {_TIMEOUT_S} s") from error
    if done.returncode:
        raise NoServerError(f"{command}: {done.stdout.decode()}")


def binaries() -> Path:
    """The folder of the newest server's programs. Raises `NoServerError` where there is none."""
    found = shutil.which("pg_ctl")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if folders:
        return folders[-1]
    if found is None:
        raise NoServerError("no pg_ctl: install Debian's package `postgresql`")
    return Path(found).resolve().parent


@contextmanager
def running_server(
    *, durable: bool = True, directory: Path | None = None, settings: str = ""
) -> Iterator[PostgresServer]:
    """A fresh server, removed afterwards.

    Args:
      durable: whether commits reach the disk. Without, they survive the server's death and not the machine's.
      settings: further lines of postgresql.conf.
      directory: where its folder is made, on the disk that is to be measured; that for temporary files by default.
    """
    programs = binaries()
    folder = Path(tempfile.mkdtemp(prefix="weir-postgres-", dir=directory))
    try:
        if os.getuid() == 0:
            try:
                shutil.chown(folder, _OTHER_USER, _OTHER_USER)
            except LookupError:
                raise NoServerError(f"no user {_OTHER_USER!r}, and servers refuse to run as root") from None
        initialize = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", _OTHER_USER, "-A", "trust"]
        _run([*initialize, "--no-sync", "--no-locale", "-E", "UTF8"])
        with (folder / "data" / "postgresql.conf").open("a") as file:
            file.write(
                f"{settings}\nlisten_addresses = ''\nunix_socket_directories = '{folder}'\nmax_connections = 40\n"
            )
            file.write("deadlock_timeout = '50ms'\n")
            file.write(f"fsync = {'on' if durable else 'off'}\n")
        server = PostgresServer(folder, programs)
        server.start()
        try:
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
