"""Where the tokens come from: keys that nobody else may know or have made."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serving_bridge.access.keys import ROLES, AccessError, FleetKeys, FreshKeys
from tests.support.disk_effects import effects

__all__ = ["effects"]  # a fixture

URL = "http://127.0.0.1:8000"


def test_tokens_differ_by_role_address_start_and_key(tmp_path: Path):
    keys = FleetKeys(tmp_path / "keys")
    keys.make()
    tokens = {
        keys.token(role, url, start) for role in ROLES for url in (URL, "http://127.0.0.1:8001") for start in ("a", "b")
    }
    assert len(tokens | {FreshKeys().token("control", URL, "a")}) == 9
    assert keys.token("control", URL, "a") == FleetKeys(tmp_path / "keys").token("control", URL, "a")


def test_all_who_make_the_keys_at_once_get_the_same_ones_for_their_eyes_only(tmp_path: Path):
    folder = tmp_path / "weights" / "keys"
    found: list[str] = []

    def make() -> None:
        keys = FleetKeys(folder)
        keys.make()
        found.append(keys.token("control", URL, "a") + keys.token("inference", URL, "a"))

    threads = [threading.Thread(target=make) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1
    assert sorted(os.listdir(folder)) == ["control.key", "inference.key"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_keys_are_on_the_disk_before_their_names_are(tmp_path: Path, effects: list[str]):
    FleetKeys(tmp_path / "keys").make()
    written = [re.sub(r"[.][0-9a-f]{16} ", " ", effect) for effect in effects]
    assert written == ["sync .control.key 65", "sync keys", "sync .inference.key 65", "sync keys"]
    effects.clear()
    FleetKeys(tmp_path / "keys").make()  # those that are there stay
    assert "sync keys" not in effects
    assert sorted(os.listdir(tmp_path / "keys")) == ["control.key", "inference.key"]


def _open_folder(folder: Path) -> None:
    folder.chmod(0o755)


def _open_file(folder: Path) -> None:
    (folder / "control.key").chmod(0o640)


def _foreign(folder: Path) -> None:
    os.chown(folder / "control.key", 12345, -1)


def _linked(folder: Path) -> None:
    (folder / "control.key").rename(folder / "elsewhere")
    (folder / "control.key").symlink_to("elsewhere")


def _linked_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def _pipe(folder: Path) -> None:
    (folder / "control.key").unlink()
    os.mkfifo(folder / "control.key", 0o600)


def _short(folder: Path) -> None:
    (folder / "control.key").write_text("00")


def _empty(folder: Path) -> None:
    (folder / "control.key").write_text("")


def _gone(folder: Path) -> None:
    (folder / "control.key").unlink()


@pytest.mark.parametrize(
    "meddle", [_open_folder, _open_file, _foreign, _linked, _linked_folder, _pipe, _short, _empty, _gone]
)
def test_keys_that_others_may_know_or_have_made_are_refused(meddle: Callable[[Path], None], tmp_path: Path):
    if meddle is _foreign and os.geteuid() != 0:
        pytest.skip("only root can give files away")
    folder = tmp_path / "keys"
    FleetKeys(folder).make()
    meddle(folder)
    with pytest.raises(AccessError, match="keys"):
        FleetKeys(folder).token("control", URL, "a")


def test_a_worker_needs_only_its_own_key(tmp_path: Path):
    FleetKeys(tmp_path / "keys").make()
    (tmp_path / "keys" / "control.key").unlink()
    assert FleetKeys(tmp_path / "keys").token("inference", URL, "a")
