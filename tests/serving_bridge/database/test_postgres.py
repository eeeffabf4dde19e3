"""The queue on a PostgreSQL server that fails: lost connections, commits in doubt, crashes, locks, refusals."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from learner_jax.runtime.waits import Waits
from serving_bridge.database.database import Database, DatabaseError, Session, open_database
from serving_bridge.database.postgres import PostgresDatabase
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.queue.staleness import Pace
from tests.support.postgres_proxy import Proxy
from tests.support.queue_engines import execute, fresh_url, lease, put, train
from tests.support.trajectories import make_group
from tools.bench.queue.postgres_server import NoServerError, PostgresServer, running_server

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres_url: str) -> str:
    return fresh_url(postgres_url)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One that a test may stop, if it starts it again."""
    try:
        running = running_server(durable=False)
        with running as found:
            yield found
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    folder = parse_qs(urlsplit(postgres_url).query).get("host")
    if folder is None:
        pytest.skip("the proxy knows servers on a local socket only")
    found = Proxy(f"{folder[0]}/.s.PGSQL.5432")
    yield found
    found.close()


def through(proxy: Proxy, url: str) -> str:
    schema = parse_qs(urlsplit(url).query)["schema"][0]
    return f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres?schema={schema}&sslmode=disable"


@pytest.mark.parametrize("cut", ["before", "after", "late"])
def test_an_operation_whose_connection_is_lost_at_the_commit_takes_effect_once(
    url: str, proxy: Proxy, cut: str
) -> None:
    queue = TrajectoryQueue(through(proxy, url))
    attempts: list[int] = []
    execute(queue, "CREATE TABLE counted (n BIGINT)")

    def work(session: Session) -> int:
        attempts.append(len(attempts))
        session.execute("INSERT INTO counted VALUES (1)")
        return attempts[-1]

    proxy.cut = cut
    result = queue.database.write(work)
    assert execute(queue, "SELECT count(*) FROM counted") == [(1,)]
    assert (result, len(attempts)) == {"before": (1, 2), "after": (0, 1), "late": (0, 1)}[cut]
    proxy.cut = cut
    assert put(queue, 0, 1) == 2
    assert lease(queue) == ["run/0", "run/1"]
    proxy.cut = cut
    train(queue, ["run/0", "run/1"])
    assert queue.admin.progress().num_trained == 2
    queue.close()


def test_a_server_that_goes_while_rows_are_sent_is_waited_for(url: str, proxy: Proxy) -> None:
    """The client then says only that it can't leave its pipeline; the connection still counts as open."""
    queue = TrajectoryQueue(through(proxy, url))
    proxy.cut = "goodbye"
    assert put(queue, 0, 1, 2) == 3
    assert proxy.cut is None
    assert lease(queue) == ["run/0", "run/1", "run/2"]
    queue.close()


def test_a_connection_lost_inside_a_transaction_is_made_again(url: str) -> None:
    queue = TrajectoryQueue(url)
    attempts: list[int] = []

    def work(session: Session) -> None:
        attempts.append(1)
        session.execute("UPDATE progress SET value = value + 1 WHERE key = 'completed_steps'")
        if len(attempts) == 1:
            ((pid,),) = session.execute("SELECT pg_backend_pid()")
            with psycopg.connect(url.partition("&schema")[0], autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        session.execute("UPDATE progress SET value = value + 1 WHERE key = 'completed_steps'")

    queue.database.write(work)
    assert (len(attempts), queue.admin.progress().completed_steps) == (2, 2)
    queue.close()


def test_a_server_that_crashes_again_and_again_loses_and_repeats_nothing(server: PostgresServer) -> None:
    """A worker and a learner go on while the server is killed under them."""
    url, total = f"{server.url}&schema=crash", 240
    TrajectoryQueue(url).close()
    trained: list[str] = []
    stop = threading.Event()

    def produce() -> None:
        queue = TrajectoryQueue(url)
        while len(trained) < total and not stop.is_set():
            claimed = queue.producer.claim_prompts("w", 3, Pace(1000, 4, total // 4), served_step=0)
            assert queue.producer.put([(index, make_group(f"run/{index}")) for index in claimed]) == len(claimed)
            time.sleep(0.002)
        queue.close()

    def consume() -> None:
        queue = TrajectoryQueue(url)
        queue.consumer.recover([], completed_steps=0, prompt_cursor=0)
        group_ids: list[str] = []
        while len(trained) < total and not stop.is_set():
            group_ids += lease(queue, 4 - len(group_ids))
            if len(group_ids) == 4:
                trained.extend(group_ids)
                queue.consumer.mark_trained(group_ids, completed_steps=len(trained) // 4, trained_version=1)
                queue.consumer.acknowledge(group_ids)
                group_ids = []
        queue.close()

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(produce), pool.submit(consume)]
        try:
            for crash in (server.stop, server.kill, server.stop):
                already = len(trained)
                _until(lambda already=already: len(trained) > already + 20 or any(r.done() for r in running))
                crash()
                time.sleep(0.1)
                _until(lambda: _started(server))
            for one in running:
                one.result(timeout=60)
        finally:
            stop.set()
    assert sorted(trained) == sorted(f"run/{index}" for index in range(total))
    queue = TrajectoryQueue(url)
    progress = queue.admin.progress()
    queue.close()
    assert (progress.num_acknowledged, progress.num_ready, progress.num_claimed) == (total, 0, 0)


def _started(server: PostgresServer) -> bool:
    try:
        server.start()
    except NoServerError:
        return False  # what a killed one left is still ending
    return True


def _until(reached: Callable[[], bool], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_that_stays_away_is_given_up(server: PostgresServer) -> None:
    waits = Waits()
    queue = TrajectoryQueue(server.url, timeout_s=1, waits=waits)
    put(queue, 0)
    server.stop()
    started = time.monotonic()
    with pytest.raises(
        DatabaseError, match=r"PostgreSQL and gave up \(store.database_timeout_s = 1 s\): check that it"
    ):
        put(queue, 1)
    assert 0.5 < time.monotonic() - started < 5
    with pytest.raises(DatabaseError, match="the database server of .* and gave up"):
        TrajectoryQueue(server.url, timeout_s=0.5)
    assert waits.current() == []
    server.start()
    assert put(queue, 0, 1) == 1  # it goes on where it was
    queue.close()


def test_refusals_are_told_at_once(postgres_url: str) -> None:
    missing = postgres_url.replace("/postgres?", "/nowhere?")
    started = time.monotonic()
    with pytest.raises(DatabaseError, match="nowhere.*does not exist.*check store.database"):
        TrajectoryQueue(missing, timeout_s=30)
    assert time.monotonic() - started < 5
    with pytest.raises(DatabaseError, match="expected at most 63 bytes"):
        TrajectoryQueue(postgres_url + "&schema=" + "x" * 64)


def test_leases_of_one_moment_go_past_each_other(url: str) -> None:
    """A consumer that is slow in the middle of its lease holds up neither another consumer nor a worker."""
    first, second = TrajectoryQueue(url), TrajectoryQueue(url)
    put(first, 0, 1, 2)
    inside, go_on = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, inner: Database):
            self.inner, self.name = inner, inner.name

        def read(self, work: Callable[[Session], Any]) -> Any:
            return self.inner.read(work)

        def write(self, work: Callable[[Session], Any], *, synced: bool = True) -> Any:
            def slowly(session: Session) -> Any:
                result = work(session)
                inside.set()
                assert go_on.wait(20)
                return result

            return self.inner.write(slowly, synced=synced)

        def close(self) -> None:
            self.inner.close()

    slow = TrajectoryQueue(database=Slow(first.database))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lease, slow, 2)
        assert inside.wait(20)
        try:
            assert lease(second) == ["run/2"]
            assert put(second, 3) == 1
        finally:
            go_on.set()
        assert waiting.result() == ["run/0", "run/1"]
    first.close()
    second.close()


def test_a_lock_that_is_never_given_back_is_told(url: str) -> None:
    queue = TrajectoryQueue(url, timeout_s=0.3)
    with psycopg.connect(url.partition("&schema")[0]) as holder:
        schema = parse_qs(urlsplit(url).query)["schema"][0]
        holder.execute(f"SELECT * FROM {schema}.progress FOR UPDATE")
        with pytest.raises(DatabaseError, match="locked by another process for too long"):
            queue.consumer.finish()
        holder.rollback()
    queue.consumer.finish()
    assert queue.admin.progress().finished
    queue.close()


def test_a_deadlock_is_broken_and_both_go_on(url: str) -> None:
    first, second = open_database(url), open_database(url)
    met = threading.Barrier(2, timeout=20)
    first_try = [True, True]

    def cross(number: int) -> None:
        def work(session: Session) -> None:
            keys = ["completed_steps", "trained_version"]
            session.execute(f"UPDATE progress SET value = value + 1 WHERE key = '{keys[number]}'")
            if first_try[number]:
                first_try[number] = False
                met.wait()
            session.execute(f"UPDATE progress SET value = value + 1 WHERE key = '{keys[1 - number]}'")

        (first, second)[number].write(work)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(cross, (0, 1)))
    found = first.read(lambda session: session.execute("SELECT value FROM progress WHERE key LIKE '%ed_%' ORDER BY 1"))
    assert [value for (value,) in found if value] == [2, 2]
    first.close()
    second.close()


def test_another_programs_tables_and_newer_schemas_are_refused(url: str) -> None:
    schema = parse_qs(urlsplit(url).query)["schema"][0]
    with psycopg.connect(url.partition("&schema")[0], autocommit=True) as raw:
        raw.execute(f"CREATE SCHEMA {schema}")
        raw.execute(f"CREATE TABLE {schema}.groups (x int)")
        with pytest.raises(DatabaseError, match="table `groups` of another program"):
            TrajectoryQueue(url)
        raw.execute(f"DROP TABLE {schema}.groups")
        TrajectoryQueue(url).close()
        raw.execute(f"UPDATE {schema}.weir_schema SET version = 9")
        with pytest.raises(DatabaseError, match="schema version 9, this build reads 5"):
            TrajectoryQueue(url)


def test_commits_wait_for_the_log(url: str) -> None:
    database = open_database(url)
    assert database.read(lambda session: session.execute("SHOW synchronous_commit")) == [("on",)]
    assert "password" not in database.name
    database.close()


def test_a_process_that_was_forgotten_goes_on(url: str) -> None:
    queue = TrajectoryQueue(url)
    put(queue, 0)
    other = TrajectoryQueue(url)
    execute(other, "DELETE FROM weir_writers")
    assert put(queue, 0, 1) == 1
    assert put(queue, 0, 1, 2) == 1
    queue.close()
    other.close()


def test_the_server_knows_a_writer_before_its_first_write_and_not_after_its_last(url: str) -> None:
    """So no write is tried twice, and writers that ended well leave nothing to be forgotten."""
    for _ in range(2):
        database = PostgresDatabase(url, timeout_s=30.0, waits=Waits())
        assert database.read(lambda session: session.execute("SELECT count(*) FROM weir_writers")) == [(1,)]
        database.close()
