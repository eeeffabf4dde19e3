"""Where the peers of the learner benchmark come from, and how their scripts are driven."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.bench_batches import small_batch
from tools.bench import BenchmarkError
from tools.bench.learner import peers, sides
from tools.bench.learner.cases import PaddedBatch

FAKE_PEER = """
import argparse, json, os

def make_batch(a):
    raise AssertionError("the script's own batch")

def main():
    p = argparse.ArgumentParser()
    p.add_argument("--seq", type=int)
    p.add_argument("--remat")
    a = p.parse_args()
    b = make_batch(a)
    cores, tokens = sorted(os.sched_getaffinity(0)), int(b["completion_mask"].sum())
    print("a line of log")
    print(json.dumps(dict(seq=a.seq, remat=a.remat, tokens=tokens, names=sorted(b), cores=cores)))
"""


def drive(script: Path, batch: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    driver = Path(sides.__file__).with_name("peer_driver.py")
    command = [sys.executable, "-P", str(driver), "--script", str(script), "--batch", str(batch), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_driver_gives_the_script_our_batch_and_its_flags(tmp_path: Path) -> None:
    script, file = tmp_path / "peer.py", tmp_path / "batch.npz"
    script.write_text(FAKE_PEER)
    small_batch().write(file)
    core = min(os.sched_getaffinity(0))
    done = drive(script, file, "--core", str(core), "--", "--seq", "15", "--remat", "NONE")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "seq": 15,
        "remat": "NONE",
        "tokens": 21,
        "names": sorted(field.name for field in dataclasses.fields(PaddedBatch)),
        "cores": [core],
    }


def test_driver_refuses_a_script_that_would_measure_a_batch_of_its_own(tmp_path: Path) -> None:
    script, file = tmp_path / "peer.py", tmp_path / "batch.npz"
    script.write_text("def main():\n    print('measured')\n")
    small_batch().write(file)
    done = drive(script, file)
    assert done.returncode == 1
    assert "has no make_batch to replace" in done.stderr
    assert not done.stdout


class FakePip:
    """Makes what looks like an environment, and counts."""

    def __init__(self) -> None:
        self.calls: list[tuple[Path, tuple[str, ...]]] = []
        self.fails = False

    def __call__(self, folder: Path, requirements: Sequence[str]) -> None:
        assert not folder.exists()  # remains of an unfinished one would be mixed in
        self.calls.append((folder, tuple(requirements)))
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").touch()
        if self.fails:
            raise BenchmarkError("no network")


def test_peer_is_installed_once_below_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pip = FakePip()
    folder = tmp_path / "weir" / "peers" / "tunix"
    assert peers.environment("tunix", None, pip) == peers.environment("tunix", None, pip) == folder / "bin" / "python"
    assert pip.calls == [(folder, peers.LEARNERS["tunix"].requirements)]
    assert {"google-tunix==0.1.7", "jax==0.10.2", "flax==0.12.8"} < set(pip.calls[0][1])


def test_unfinished_or_outdated_environment_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pip = FakePip()
    pip.fails = True
    with pytest.raises(BenchmarkError, match="no network"):
        peers.environment("trl", None, pip)
    pip.fails = False
    peers.environment("trl", None, pip)
    assert len(pip.calls) == 2
    newer = peers.Peer("peer_trl_step.py", ("torch==3.0.0",))
    monkeypatch.setitem(peers.LEARNERS, "trl", newer)
    peers.environment("trl", None, pip)
    assert pip.calls[2:] == [(tmp_path / "weir" / "peers" / "trl", ("torch==3.0.0",))]


def test_given_environments_are_taken_as_they_are(tmp_path: Path) -> None:
    pip = FakePip()
    with pytest.raises(BenchmarkError, match=r"trl/bin/python expected, not there: --environments names a folder"):
        peers.environment("trl", tmp_path, pip)
    python = tmp_path / "trl" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert peers.environment("trl", tmp_path, pip) == python
    assert not pip.calls


def test_what_pip_says_is_shown_only_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = 0

    def pip(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, status, "WARNING: Location 'x' is ignored\n", None)

    monkeypatch.setattr(peers.venv, "create", lambda *_, **__: None)
    monkeypatch.setattr(peers.subprocess, "run", pip)
    peers.install_with_pip(tmp_path / "tunix", ("google-tunix==0.1.7",))
    error = capsys.readouterr().err
    assert "installing google-tunix==0.1.7 into" in error
    assert "WARNING" not in error
    status = 3
    with pytest.raises(BenchmarkError, match="could not install tunix and ended with status 3"):
        peers.install_with_pip(tmp_path / "tunix", ("google-tunix==0.1.7",))
    assert "WARNING: Location" in capsys.readouterr().err


def test_scripts_are_looked_for_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIR_PEERS", str(tmp_path))
    with pytest.raises(BenchmarkError) as missing:
        peers.scripts_folder(None, ["tunix", "trl"])
    for word in ("peer_tunix_step.py and peer_trl_step.py expected in", "--peers", "WEIR_PEERS", "--sides weir"):
        assert word in str(missing.value)
    (tmp_path / "peer_trl_step.py").touch()
    assert peers.scripts_folder(None, ["trl"]) == tmp_path
    with pytest.raises(BenchmarkError, match="expected in nowhere, not there"):
        peers.scripts_folder(Path("nowhere"), ["trl"])
