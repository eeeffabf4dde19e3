"""`python -m tools.tenants`: what an operator does from the first tenant to its bill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.load import load_config, save_config
from serving_bridge.database import open_database
from serving_bridge.tenants import TENANTS, DeploymentSecret, Directory, is_well_formed
from tests.conftest import REPOSITORY
from tools.tenants import main


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A database that is not there yet."""
    return tmp_path / "tenants.db"


def told(capsys: pytest.CaptureFixture[str], place: Path, command: str) -> str:
    call(place, command)
    return capsys.readouterr().out


def call(place: Path, command: str) -> None:
    makes_keys = command.startswith(("key create", "key rotate")) and place.suffix == ".db"
    main([str(place), *command.split(), *(["--secret", str(place.parent / "keys")] if makes_keys else [])])


def test_from_a_tenant_to_a_key_that_gateways_take(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "tenant acme is added" in told(capsys, place, "add acme --class paid --weight 2")
    call(place, "key create acme --models demo --days 90")
    shown = capsys.readouterr()
    key, key_id = shown.out.strip(), shown.err.split()[0]
    assert is_well_formed(key)
    database = open_database(place, schema=TENANTS)
    directory = Directory(database, DeploymentSecret.in_folder(place.parent / "keys"))
    directory.refresh()
    assert directory.authenticate({"authorization": f"Bearer {key}"}).scopes.models == ("demo",)
    database.close()
    page = told(capsys, place, "show acme")
    assert "class paid, weight 2; conversations not kept, not trained on" in page
    assert key_id in page
    assert key not in page
    new_key = told(capsys, place, f"key rotate {key_id} --overlap-hours 1").strip()
    assert new_key != key
    assert f"key {key_id} is revoked" in told(capsys, place, f"key revoke {key_id}")
    rows = [line for line in told(capsys, place, "show acme").splitlines() if line.strip().startswith("key_")]
    assert ["revoked" in row for row in rows] == [True, False]


def test_limits_budgets_and_prices(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, place, "add acme")
    line = told(capsys, place, "limits set acme --requests-per-minute 600 --concurrency 8")
    assert line == "acme: requests a minute 600, concurrency 8\n"
    assert told(capsys, place, "limits set acme --concurrency none") == "acme: requests a minute 600\n"
    line = told(capsys, place, "budget set acme --tokens 5000000 --money 250")
    assert line == "acme: requests a minute 600, tokens a month 5,000,000, money a month 250.00\n"
    assert told(capsys, place, "limits set --deployment --concurrency 256") == "deployment: concurrency 256\n"
    assert "deployment: concurrency 256" in told(capsys, place, "list")
    assert "demo" in told(capsys, place, "price set demo --prompt 0.15 --completion 0.60")
    assert told(capsys, place, "price").split()[-3:] == ["demo", "0.15", "0.60"]


def test_a_tenant_is_changed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, place, "add acme")
    page = told(capsys, place, "set acme --consent --retention-days 30 --suspended --new-salt")
    assert "kept 30 days, may be trained on, suspended" in page
    assert "suspended" not in told(capsys, place, "set acme --no-suspended")
    assert "acme" in told(capsys, place, "list")


def test_bills_are_shown_and_exported(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told(capsys, place, "add acme")
    columns = "response_id, tenant, key_id, model, month, prompt_tokens, completion_tokens, nanos, settled, began_s"
    database = open_database(place, schema=TENANTS)
    database.write(
        lambda session: session.executemany(
            f"INSERT INTO meter ({columns}) VALUES (?, ?, 'key_1', 'demo', ?, 100, 20, 1500000000, ?, 1.0)",
            [("r1", "acme", "2026-11", "usage"), ("r2", "acme", "2026-11", "reservation"),
             ("r3", "zeta", "2026-11", "usage"), ("r4", "acme", "2026-10", "usage")],
        )
    )  # fmt: skip
    database.close()
    rows = [line.split() for line in told(capsys, place, "usage --month 2026-11").splitlines()]
    assert ["acme", "2", "200", "40", "3.00", "1"] in rows
    assert ["zeta", "1", "100", "20", "1.50", "0"] in rows
    (used,) = json.loads(told(capsys, place, "usage --month 2026-11 --tenant zeta --json"))
    assert used["prompt_tokens"] == 100
    lines = told(capsys, place, "export --tenant acme").splitlines()
    assert [json.loads(line)["response_id"] for line in lines] == ["r1", "r2", "r4"]
    out = tmp_path / "bills.jsonl"
    assert "3 answers" in told(capsys, place, f"export --month 2026-11 --out {out}")
    assert [json.loads(line)["response_id"] for line in out.read_text().splitlines()] == ["r1", "r2", "r3"]
    assert out.stat().st_mode & 0o077 == 0


def test_a_run_has_its_database_and_its_folder_of_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    save_config(load_config(REPOSITORY / "configs" / "demo.toml", [f"run.directory={run}"]), run / "config.toml")
    told(capsys, run, "add acme")
    assert is_well_formed(told(capsys, run, "key create acme").strip())
    assert (run / "state.db").is_file()
    assert (run / "weights" / "replicas" / "keys" / "tenants.key").is_file()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("show nobody", "does not exist"),
        ("limits set acme", "nothing to set"),
        ("limits set --concurrency 3", "either a tenant or --deployment"),
        ("limits set acme --concurrency x", "expected a whole number"),
        ("limits set acme --concurrency 0", "concurrency is 0"),
        ("budget set acme --money 1.0000000001", "at most 9 places"),
        ("price set demo --prompt x --completion 1", "expected a decimal number"),
        ("key create acme --days nan", "yet to come"),
        ("key create acme --days -1", "yet to come"),
        ("key rotate key_1", "does not exist"),
        ("usage --month november", "expected one such as 2026-11"),
        ("export --out /nowhere/at/all", "/nowhere/at/"),
    ],
)
def test_a_mistake_ends_in_one_line(place: Path, capsys: pytest.CaptureFixture[str], command: str, words: str) -> None:
    told(capsys, place, "add acme")
    with pytest.raises(SystemExit) as ended:
        told(capsys, place, command)
    assert ended.value.code not in (0, None)
    assert words in (error := capsys.readouterr().err), error
    assert error.count("\n") == 1
