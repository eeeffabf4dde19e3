"""PostgreSQL across machines: passwords stay secret, impostors are refused, and each role may do its own work only."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from configs.load import ConfigError, load_config
from serving_bridge.database.database import DatabaseError, open_database, secret_in_url
from serving_bridge.database.postgres_url import split_url
from serving_bridge.database.roles import prepare
from serving_bridge.processes import free_port
from serving_bridge.queue.queue import TrajectoryQueue
from tests.conftest import REPOSITORY
from tests.support.queue_engines import PACE, execute, fresh_url, lease, put, train
from tools.bench.queue.postgres_server import NoServerError, PostgresServer, running_server

SECRET = "hunter2-very-secret"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{SECRET}@host/db",
        f"postgres://user:{SECRET}@host/db",
        f"postgresql://user:{SECRET}@host",
        f"postgresql://user:{SECRET}@host?schema=x",
        f"postgresql://:{SECRET}@host/db",
        f"postgresql://user@host/db?password={SECRET}",
        f"postgresql://user@host/db?schema=x&sslpassword={SECRET}",
        f"postgresql://user:{SECRET}@[::1/db",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str, tmp_path: Path):
    problem = secret_in_url(url)
    assert problem is not None
    assert SECRET not in problem
    for attempt in (
        lambda: split_url(url),
        lambda: TrajectoryQueue(url, timeout_s=1),
        lambda: load_config(REPOSITORY / "configs" / "demo.toml", [f"store.database={url}"]),
    ):
        with pytest.raises((DatabaseError, ConfigError), match=r"store.*holds a password") as refused:
            attempt()
        assert SECRET not in str(refused.value)
        assert SECRET not in repr(refused.value)


@pytest.mark.parametrize(
    "url",
    ["postgresql://user@host:5432/db", "postgresql://host/db?passfile=/x", "runs/a:b@c.db", "sqlite:///a?password=x"],
)
def test_a_url_without_one_is_taken(url: str):
    assert secret_in_url(url) is None


def _settings(url: str, **environment: str) -> dict[str, str]:
    return {key: str(value) for key, value in psycopg.conninfo.conninfo_to_dict(split_url(url, environment)[0]).items()}


@pytest.mark.parametrize(
    ("url", "environment"),
    [
        ("postgresql://db.example/weir", {}),
        ("postgresql://10.0.0.7/weir", {}),
        ("postgresql://localhost,db.example/weir", {}),
        ("postgresql://localhost.evil.example/weir", {}),
        ("postgresql://localhost/weir?hostaddr=10.0.0.7", {}),
        ("postgresql://db.example/weir?hostaddr=127.0.0.1", {}),
        ("postgresql:///weir?host=db.example", {}),
        ("postgresql:///weir", {"PGHOST": "db.example"}),
        ("postgresql:///weir", {"PGHOSTADDR": "10.0.0.7"}),
        ("postgresql:///weir", {"PGSERVICE": "training"}),
        ("postgresql:///weir?service=training", {}),
    ],
)
def test_off_this_machine_the_server_is_verified(url: str, environment: dict[str, str]):
    settings = _settings(url, **environment)
    assert (settings["sslmode"], settings["require_auth"]) == ("verify-full", "scram-sha-256")
    joint = "&" if "?" in url else "?"
    for mode in ("disable", "allow", "prefer", "require", "verify-ca"):
        with pytest.raises(DatabaseError, match=f"sslmode is {mode}.*expected verify-full"):
            split_url(f"{url}{joint}sslmode={mode}", environment)
    for method in ("password", "md5", "scram-sha-256,password", "!none"):
        with pytest.raises(DatabaseError, match="require_auth names .*expected scram-sha-256"):
            split_url(f"{url}{joint}require_auth={quote(method)}", environment)


@pytest.mark.parametrize(
    "url",
    ["postgresql:///weir", "postgresql://localhost/weir", "postgresql://127.0.0.1/weir", "postgresql://[::1]/weir",
     "postgresql:///weir?host=%2Fvar%2Frun", "postgresql:///weir?host=@socket"],
)  # fmt: skip
def test_on_this_machine_no_certificate_is_asked_for(url: str):
    settings = _settings(url)
    assert "sslmode" not in settings
    assert settings["require_auth"] == "scram-sha-256,none"


def test_a_url_that_libpq_does_not_know_is_told():
    with pytest.raises(DatabaseError, match=r"db\?schema=x.*invalid.*shlmode.*store.database"):
        split_url("postgresql://localhost/db?schema=x&shlmode=disable")


class Impostor:
    """Answers at the server's address and asks for the password in clear, as PostgreSQL's protocol has it."""

    def __init__(self) -> None:
        self.told: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    self._talk(connection)
                except (OSError, struct.error):
                    continue

    def _talk(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        while True:
            size, code = struct.unpack("!II", connection.recv(8))
            connection.recv(size - 8)
            if code not in (80877103, 80877104):  # asks for TLS, or for GSS encryption
                break
            connection.sendall(b"N")
        connection.sendall(b"R" + struct.pack("!II", 8, 3))  # AuthenticationCleartextPassword
        self.told.append(connection.recv(1024))

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def impostor() -> Iterator[Impostor]:
    found = Impostor()
    yield found
    found.close()


@pytest.mark.parametrize("host", ["localhost", "db.example"])
def test_an_impostor_is_not_told_the_password(host: str, impostor: Impostor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PGPASSWORD", SECRET)
    # What libpq does by itself: the test of the test.
    bare = f"host=127.0.0.1 port={impostor.port} user=weir dbname=weir"
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(bare, connect_timeout=5)
    assert any(SECRET.encode() in told for told in impostor.told)
    impostor.told.clear()
    with pytest.raises(DatabaseError):
        TrajectoryQueue(f"postgresql://weir@{host}:{impostor.port}/weir?hostaddr=127.0.0.1", timeout_s=1)
    assert not any(SECRET.encode() in told for told in impostor.told)


def _certificate(folder: Path, name: str) -> None:
    """A certificate authority `ca.crt`, and `server.crt` with its key for a host name."""
    subject = f"subjectAltName=DNS:{name}"
    make = [
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.crt",
        f"req -newkey rsa:2048 -nodes -subj /CN={name} -addext {subject} -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -copy_extensions copy"
        " -out server.crt",
    ]
    for arguments in make:
        subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True, timeout=60)


@dataclass(frozen=True)
class Remote:
    """A server that takes TLS and SCRAM only; host names are given, the address is this machine's."""

    server: PostgresServer
    port: int
    folder: Path

    def url(self, user: str, *, schema: str, host: str = "db.example", authority: str = "ca.crt") -> str:
        root = quote(str(self.folder / authority), safe="")
        return f"postgresql://{user}@{host}:{self.port}/postgres?hostaddr=127.0.0.1&sslrootcert={root}&schema={schema}"


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")
    _certificate(folder, "db.example")
    port = free_port()
    try:
        with running_server(durable=False) as server:
            data = server.folder / "data"
            for name in ("server.crt", "server.key"):
                shutil.copy(folder / name, data / name)
                shutil.chown(data / name, data.owner(), data.group())
                (data / name).chmod(0o600)
            with (data / "postgresql.conf").open("a") as file:
                file.write(f"listen_addresses = '127.0.0.1'\nport = {port}\nssl = on\n")
            (data / "pg_hba.conf").write_text("local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n")
            with psycopg.connect(f"{server.url}", autocommit=True) as connection:
                for role, more in (("owner", "CREATEROLE"), ("worker", ""), ("learner", ""), ("nobody", "")):
                    connection.execute(f"CREATE ROLE weir_{role} LOGIN {more} PASSWORD '{SECRET}'")
                connection.execute("GRANT CREATE ON DATABASE postgres TO weir_owner")
            server.stop("fast")
            server.start()
            yield Remote(server, port, folder)
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", SECRET)


@pytest.mark.postgres
@pytest.mark.usefixtures("password")
def test_a_server_off_this_machine_must_be_the_one_that_is_named(remote: Remote, tmp_path: Path):
    open_database(remote.url("weir_owner", schema="tls")).close()
    with pytest.raises(DatabaseError, match="does not match host name"):
        open_database(remote.url("weir_owner", schema="tls", host="other.example"), timeout_s=1)
    _certificate(tmp_path, "db.example")
    foreign = remote.url("weir_owner", schema="tls").replace(
        quote(str(remote.folder), safe=""), quote(str(tmp_path), safe="")
    )
    with pytest.raises(DatabaseError, match="certificate verify failed"):
        open_database(foreign, timeout_s=1)


@pytest.mark.postgres
@pytest.mark.usefixtures("password")
def test_worker_and_learner_do_their_work_with_their_own_rights_only(remote: Remote):
    prepare(remote.url("weir_owner", schema="roles"), {"worker": "weir_worker", "learner": "weir_learner"})
    prepare(remote.url("weir_owner", schema="roles"), {"worker": "weir_worker", "learner": "weir_learner"})
    worker = TrajectoryQueue(remote.url("weir_worker", schema="roles"), blob_bytes=1 << 20)
    learner = TrajectoryQueue(remote.url("weir_learner", schema="roles"), blob_bytes=1 << 20)
    learner.consumer.take_over()
    learner.consumer.recover(["run/77"], completed_steps=0, prompt_cursor=0)
    claimed = worker.producer.claim_prompts("worker-0", 3, PACE, served_step=0)
    assert len(claimed) == 3
    assert worker.producer.renew_claims("worker-0") == claimed
    assert put(worker, *claimed[:2]) == 2
    worker.producer.release_claim(claimed[2])
    worker.producer.hand_on_claims("worker-0")
    assert worker.producer.progress().num_ready == 2
    first, second = lease(learner, 2)
    train(learner, [first])
    learner.consumer.acknowledge([first])
    learner.consumer.reject(second, "try again")
    learner.consumer.bury(lease(learner, 1)[0], "unreadable")
    assert [letter.reason for letter in learner.admin.overview().dead] == ["unreadable"]
    learner.admin.requeue()
    learner.consumer.finish()
    assert worker.producer.progress().finished

    for statement in (
        "UPDATE groups SET state = 'acknowledged'",
        "DELETE FROM groups",
        "SELECT payload FROM payloads",
        "DELETE FROM payloads",
        "TRUNCATE claims",
        "ALTER TABLE groups ADD COLUMN x int",
        "CREATE TABLE mine (x int)",
        "DROP TABLE claims",
        "UPDATE weir_schema SET version = 9",
        "INSERT INTO progress VALUES ('mine', 1)",
    ):
        with pytest.raises(DatabaseError, match="another role is needed here"):
            execute(worker, statement)
    execute(worker, "UPDATE progress SET value = 99 WHERE key IN ('consumer_epoch', 'completed_steps', 'finished')")
    assert learner.admin.progress().completed_steps == 1
    assert learner.consumer.prompt_cursor() == 3  # its turn was not taken
    for statement in ("TRUNCATE groups", "CREATE TABLE mine (x int)", "INSERT INTO payloads VALUES (1, '')"):
        with pytest.raises(DatabaseError, match="another role is needed here"):
            execute(learner, statement)
    worker.close()
    learner.close()


@pytest.mark.postgres
@pytest.mark.usefixtures("password")
def test_a_role_without_rights_is_told_what_to_do(remote: Remote):
    with pytest.raises(DatabaseError, match=r"may not make or see the schema.*tools.database migrate"):
        TrajectoryQueue(remote.url("weir_nobody", schema="new"), timeout_s=5)
    prepare(remote.url("weir_owner", schema="old"), {"worker": "weir_worker"})
    with pytest.raises(DatabaseError, match=r"may not make or see the schema.*tools.database migrate"):
        TrajectoryQueue(remote.url("weir_learner", schema="old"), timeout_s=5)
    with pytest.raises(DatabaseError, match="role weir_owner owns schema old"):
        prepare(remote.url("weir_owner", schema="old"), {"worker": "weir_owner"})
    with pytest.raises(DatabaseError, match='role "weir_missing" does not exist'):
        prepare(remote.url("weir_owner", schema="old"), {"worker": "weir_missing"})
    # A schema of an older build can be brought up to date by its owner alone.
    with psycopg.connect(remote.server.url.replace("/postgres?", f":{remote.port}/postgres?")) as raw:
        raw.execute("UPDATE old.weir_schema SET version = 1")
    with pytest.raises(DatabaseError, match="another role is needed here"):
        TrajectoryQueue(remote.url("weir_worker", schema="old"), timeout_s=5)


@pytest.mark.postgres
def test_the_command_prepares_a_schema(postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from tools.database import main

    told = [
        "migrate",
        "--config",
        str(REPOSITORY / "configs" / "demo.toml"),
        "--set",
        f"run.directory={tmp_path / 'run'}",
    ]
    with pytest.raises(SystemExit):
        main(told)
    assert "only a schema on PostgreSQL" in capsys.readouterr().err
    url = fresh_url(postgres_url)
    main([*told, "--set", f"store.database={url}"])
    assert capsys.readouterr().out == "the schema of demo is ready\n"
    assert not (tmp_path / "run").exists()
    TrajectoryQueue(url).close()
