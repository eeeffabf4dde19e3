"""Where the queue's rows live: transactions over SQLite on one machine or PostgreSQL on many, chosen by URL."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote, urlencode

import apsw

from learner_jax.contracts import quoted
from learner_jax.runtime import FILE_MODE, Waits, WeirError, make_folder

if TYPE_CHECKING:
    from serving_bridge.database.migrations import Schema

T = TypeVar("T")
Row = tuple[Any, ...]

APPLICATION_ID = 0x57454952  # "WEIR"
MEMORY = ":memory:"
#: Parameters of a PostgreSQL URL that nobody is to see.
_SECRETS = frozenset({"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})
#: Bigger ones make payloads in rows cheaper and changes of state dearer. Chosen when a file is made.
_PAGE_BYTES = 4096
#: The log is copied into the file each time it has grown so far: rarely enough to cost little, and never a big pause.
_LOG_BYTES = 16 * 2**20
#: Most locks are held for less than a millisecond; longer waits are looked at less often.
_FIRST_POLL_S, _POLL_GROWTH, _POLL_S = 0.0002, 1.3, 0.02


class DatabaseError(WeirError, RuntimeError):
    """The database can't be used; the message says what is wrong with it and what to do."""


class WrongDatabaseError(DatabaseError):
    """It is another program's, or of a newer build."""

    can_heal = False


class DiskFullError(DatabaseError):
    """Nothing was written because the disk is full; nothing that was accepted before is lost."""


class DamagedRowError(DatabaseError):
    """A row holds what no statement can take; nothing was changed."""


@dataclass(frozen=True)
class Dialect:
    """Where the engines' SQL differs.

    Attributes:
      for_update: ends a SELECT whose rows nobody else may change until the transaction ends.
      for_share: ends a SELECT whose rows may be read by others in the same way, and not changed.
      skip_locked: as `for_update`, and leaves out rows that others hold.
      unindexed: a column, written so that the planner doesn't choose an index for it.
      names: what stands for `{name}` in migrations.
    """

    name: str
    for_update: str
    for_share: str
    skip_locked: str
    unindexed: Callable[[str], str]
    names: Mapping[str, str]


#: One writer at a time holds the whole file, hence no row locks.
SQLITE = Dialect(
    name="sqlite",
    for_update="",
    for_share="",
    skip_locked="",
    unindexed=lambda column: f"+{column}",
    names={
        "sequence": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "bytes": "BLOB",
        "float": "REAL",
        "int": "INTEGER",
        "strict": " STRICT",
    },
)


class Session(Protocol):
    """The inside of one transaction; `?` stands for a parameter."""

    @property
    def dialect(self) -> Dialect: ...

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows of one statement."""

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> list[Row]:
        """The rows that one statement returned (RETURNING), for each of the parameters, in order."""


class Database(Protocol):
    """A connection. One transaction at a time; safe to use from several threads.

    `work` may run more than once, when a connection was lost or a deadlock broken; only one run commits. It must touch
    nothing but its session. What it raises undoes the transaction and goes on to the caller.
    """

    @property
    def name(self) -> str:
        """For messages: a path, or a URL without its password."""

    def write(self, work: Callable[[Session], T], *, synced: bool = True) -> T:
        """Runs `work` in a transaction.

        Args:
          synced: it is durable when this returns. Otherwise it may be lost if the machine that holds the database goes
            down before a later transaction is synced, for changes that nobody outlives who relies on them.

        Raises:
          DatabaseError: it could not be had within the bound; unless the message says otherwise nothing was changed.
        """

    def read(self, work: Callable[[Session], T]) -> T:
        """Runs `work` on one consistent state of the database; it must not write."""

    def close(self) -> None:
        """Ends the connection."""


def is_postgres(url: str | Path) -> bool:
    return str(url).startswith(("postgresql://", "postgres://"))


def secret_in_url(url: str) -> str | None:
    """Why a URL can't be taken because of a password in it, without telling it; None if there is none."""
    if not is_postgres(url):
        return None
    rest = url.partition("://")[2]
    authority, query = rest.partition("/")[0].partition("?")[0], rest.partition("?")[2]
    user_part = authority.rpartition("@")[0]
    named = {key for key, _ in parse_qsl(query, keep_blank_values=True)} & _SECRETS
    if ":" not in user_part and not named:
        return None
    return (
        "store.database holds a password, which would stand in command lines, config.toml and the report: expected "
        "postgresql://user@host/database, with the password in ~/.pgpass, a service file (PGSERVICE) or PGPASSWORD; "
        "change one that has been shown"
    )


def sqlite_path(url: str | Path) -> Path:
    """The file behind a path or an `sqlite:///...` URL (three slashes: relative, four: absolute).

    Raises:
      DatabaseError: it is the URL of another engine.
    """
    text = str(url)
    if text.startswith("sqlite:///"):
        return Path(unquote(text.removeprefix("sqlite:///")))
    if "://" in text:
        raise DatabaseError(
            f"database {text.partition('://')[0]}://...: expected a path, sqlite:///path or postgresql://... "
            f"(store.database)"
        )
    return Path(text)


def absolute_url(url: str | Path, *, schema: str) -> str:
    """The same database from any working folder; on a server, in a schema of its own unless the URL names one."""
    if not is_postgres(url):
        return str(sqlite_path(url).absolute())
    text = str(url)
    query = text.partition("?")[2]
    if "schema" in dict(parse_qsl(query)):
        return text
    return f"{text}{'&' if query else '?'}{urlencode({'schema': schema})}"


def open_database(
    url: str | Path,
    *,
    timeout_s: float = 30.0,
    waits: Waits | None = None,
    schema: Schema | None = None,
    erases: bool = False,
) -> Database:
    """Opens or creates a database, and brings an older schema in it up to date.

    Args:
      url: a path or `sqlite:///path`, `:memory:`, or `postgresql://...?schema=name`.
      timeout_s: bound on waiting for the database: for another process's lock, or for a server that is away.
      schema: the tables that are wanted in it; by default the queue's. Others that it holds stay as they are.
      erases: what this connection deletes is overwritten in an SQLite file, and not only forgotten (`empty_log`).

    Raises:
      DatabaseError: it is not Weir's, is damaged, can't be reached, or was written by a newer build.
    """
    from serving_bridge.database.migrations import QUEUE, migrate

    wanted = QUEUE if schema is None else schema
    waits = Waits() if waits is None else waits
    database: Database
    if is_postgres(url):
        from serving_bridge.database.postgres import PostgresDatabase  # a driver that runs on one machine do without

        database = PostgresDatabase(str(url), timeout_s=timeout_s, waits=waits)
    else:
        database = SqliteDatabase(sqlite_path(url), timeout_s=timeout_s, waits=waits, erases=erases)
    try:
        database.write(lambda session: migrate(session, database.name, wanted))
    except BaseException:
        database.close()
        raise
    return database


def empty_log(database: Database, *, limit_s: float = 5.0) -> bool:
    """Cuts the log of an SQLite file, in which deleted rows stand until it is written over.

    Args:
      limit_s: bound on waiting for other processes that read or write just now.

    Returns:
      whether it is empty; True also of a server, which keeps and cleans its own log.
    """
    while not isinstance(database, SqliteDatabase):
        inner = getattr(database, "inner", None)
        if inner is None:
            return True
        database = inner
    return database.empty_log(limit_s)


class SqliteSession:
    """Implements `Session`."""

    dialect = SQLITE

    def __init__(self, connection: apsw.Connection):
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return self._connection.execute(sql, parameters).fetchall()

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> list[Row]:
        return self._connection.executemany(sql, rows).fetchall()


def _create_for_owner(path: Path) -> None:
    """Prompts and answers are in it: the file, and those that SQLite makes beside it, are for their owner alone."""
    with suppress(OSError):  # it is there, or can't be made: then SQLite says so
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))


class SqliteDatabase:
    """A file in WAL mode with an fsync on every commit that is to be durable; implements `Database`.

    The file must be on a local disk: WAL needs memory that all processes share. They go down with the machine.
    """

    def __init__(self, path: Path, *, timeout_s: float, waits: Waits, erases: bool = False):
        self.name = str(path)
        self._timeout_s, self._waits = timeout_s, waits
        self._lock = threading.Lock()
        if self.name != MEMORY:
            make_folder(path.parent)
            _create_for_owner(path)
        with self._clear_errors():
            self._connection = apsw.Connection(self.name)
            self._session = SqliteSession(self._connection)
            self._connection.set_busy_timeout(int(timeout_s * 1000))  # while the mode is set, which can't be repeated
            self._connection.pragma("page_size", _PAGE_BYTES)
            self._connection.pragma("journal_mode", "wal")
            self._connection.pragma("synchronous", "full")
            self._synced = True
            if erases:
                self._connection.pragma("secure_delete", True)
            page_bytes = self._connection.pragma("page_size")
            self._connection.wal_autocheckpoint(max(1, _LOG_BYTES // page_bytes))
            self._connection.pragma("journal_size_limit", 2 * _LOG_BYTES)  # cut to it after what made the log longer
            self._connection.set_busy_timeout(0)

    def write(self, work: Callable[[Session], T], *, synced: bool = True) -> T:
        return self._run("BEGIN IMMEDIATE", work, synced=synced)

    def read(self, work: Callable[[Session], T]) -> T:
        return self._run("BEGIN", work)

    def close(self) -> None:
        self._connection.close()

    def empty_log(self, limit_s: float) -> bool:
        """Copies the write-ahead log into the file and cuts it to nothing; False if others read older states of it."""
        if self.name == MEMORY:
            return True
        with self._lock, self._clear_errors():
            self._connection.set_busy_timeout(int(limit_s * 1000))
            try:
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            except apsw.BusyError:
                return False
            finally:
                self._connection.set_busy_timeout(0)
        return True

    def _run(self, begin: str, work: Callable[[Session], T], *, synced: bool | None = None) -> T:
        with self._lock, self._clear_errors():
            if synced is not None and synced != self._synced:
                self._connection.pragma("synchronous", "full" if synced else "normal")
                self._synced = synced
            try:
                return self._transact(begin, work)
            except apsw.BusyError:
                pass  # waited for below: most transactions need not be seen as waits
            with self._waits.waiting(
                f"the lock of {self.name}",
                on="other processes that use it",
                limit_s=self._timeout_s,
                setting="store.database_timeout_s",
                hint="it is locked by another process for too long: look for one that is stopped or hangs",
                error=DatabaseError,
            ) as wait:
                pause_s = _FIRST_POLL_S
                while True:
                    wait.sleep(pause_s)
                    pause_s = min(_POLL_GROWTH * pause_s, _POLL_S)
                    try:
                        return self._transact(begin, work)
                    except apsw.BusyError:
                        continue

    def _transact(self, begin: str, work: Callable[[Session], T]) -> T:
        connection = self._connection
        connection.execute(begin)
        try:
            result = work(self._session)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return result

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        path = self.name
        try:
            yield
        except apsw.NotADBError as error:
            raise DatabaseError(
                f"{path} is not an SQLite database; expected a file that Weir wrote, or none"
            ) from error
        except apsw.CantOpenError as error:
            raise DatabaseError(f"{path} can't be opened ({error}); check the folder's permissions") from error
        except apsw.ReadOnlyError as error:
            raise DatabaseError(
                f"{path} can't be written ({error}); check the permissions of file and folder"
            ) from error
        except apsw.CorruptError as error:
            raise DatabaseError(
                f"{path} is damaged ({error}); restore it or move it away to start a new queue"
            ) from error
        except (apsw.ConstraintError, apsw.MismatchError, UnicodeDecodeError, OverflowError) as error:
            raise DamagedRowError(f"{path}: a row holds what it can't: {quoted(str(error))}") from error
        except (apsw.FullError, apsw.IOError) as error:
            raise DiskFullError(f"{path}: {error}; free disk space and start again") from error
