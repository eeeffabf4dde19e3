"""Weights and files of entries: copied whole, proven by hash, kept as long as they are needed, and no longer."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from serving_bridge.registry import (
    NotHolderError,
    Registry,
    RegistryError,
    RegistryIntegrityError,
    Retention,
    model_card,
)
from serving_bridge.weights import StoreError, read_version
from tests.support.registries import FILES, candidate, published


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    found = Registry(tmp_path / "registry")
    yield found
    found.close()


def _register(registry: Registry, tmp_path: Path, seed: int) -> int:
    store, version = published(tmp_path / "weights", seed)
    return registry.register("default", store, version, FILES, candidate(), actor="ann").number


def test_an_entry_outlives_the_run_that_made_it(registry: Registry, tmp_path: Path) -> None:
    store, version = published(tmp_path / "weights")
    expected = {name: tensor.words.tolist() for name, tensor in read_version(store, version).items()}
    entry = registry.register("default", store, version, FILES, candidate(note="first"), actor="ann")
    store.shelf.remove(version)
    standing = registry.index.standing("default", entry.number)
    manifest = registry.manifest(standing)
    assert manifest.golden
    assert manifest.content_sha256 == entry.content
    found = read_version(registry.weights.store("default"), entry.weight_version)
    assert {name: tensor.words.tolist() for name, tensor in found.items()} == expected
    assert [file.name for file in entry.files] == ["config.json", "tokenizer.json"]
    assert (entry.num_parameters, entry.dtype) == (36, "bfloat16, float32")
    assert registry.problems(standing) == []


def test_export_is_a_model_folder_that_the_library_reads(registry: Registry, tmp_path: Path) -> None:
    number = _register(registry, tmp_path, 3)
    standing = registry.index.standing("default", number)
    card = model_card(standing, registry.index.events("default", number))
    registry.export(standing, tmp_path / "out", readme=card)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == {"model.embed_tokens.weight", "model.norm.weight"}
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == FILES
    assert "# default/1" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "plain").touch()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert modes == dict.fromkeys(modes, usual), "who may read the one may read the other"
    with pytest.raises(RegistryError, match="is not empty"):
        registry.export(standing, tmp_path / "out", readme="")


def test_the_same_weights_are_kept_once(registry: Registry, tmp_path: Path) -> None:
    first, second = _register(registry, tmp_path, 3), _register(registry, tmp_path, 3)
    versions = {registry.index.standing("default", number).entry.weight_version for number in (first, second)}
    assert versions == {1}
    assert registry.weights.store("default").versions() == [1]


def test_a_flipped_byte_is_named_and_not_exported(registry: Registry, tmp_path: Path) -> None:
    number = _register(registry, tmp_path, 1)
    standing = registry.index.standing("default", number)
    weights = registry.root / "weights" / "default" / "v00000001" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (problem,) = registry.problems(standing)
    assert "default/1" in problem
    assert "weights.safetensors" in problem
    assert "expected" in problem
    with pytest.raises(StoreError, match="sha256"):
        registry.export(standing, tmp_path / "out", readme="")
    assert not (tmp_path / "out").exists()
    again = _register(registry, tmp_path, 1)  # the weights at hand are whole: they are kept anew
    assert registry.problems(registry.index.standing("default", again)) == []
    _register(registry, tmp_path, 1)
    assert registry.weights.store("default").versions() == [1, 2], "the whole ones serve for all that come"


def test_a_manifest_that_was_cut_is_of_a_named_entry_and_the_weights_can_come_again(
    registry: Registry, tmp_path: Path
) -> None:
    number = _register(registry, tmp_path, 1)
    path = registry.root / "weights" / "default" / "v00000001" / "manifest.json"
    path.write_bytes(path.read_bytes()[:-9])
    standing = registry.index.standing("default", number)
    assert "entry default/1: weights of entry default/1: not a weight manifest" in registry.problems(standing)[0]
    with pytest.raises(RegistryIntegrityError, match="weights of entry default/1"):
        registry.manifest(standing)
    again = _register(registry, tmp_path, 1)
    assert registry.problems(registry.index.standing("default", again)) == []


def test_a_damaged_report_is_named(registry: Registry, tmp_path: Path) -> None:
    number = _register(registry, tmp_path, 1)
    file = registry.add_report("default", number, "gate.json", b'{"suites": []}', verdict="passed", actor="gate")
    standing = registry.index.standing("default", number)
    assert registry.problems(standing) == []
    (registry.root / "files" / file.sha256[:2] / file.sha256).write_bytes(b"{}")
    (problem,) = registry.problems(standing)
    assert "gate.json" in problem


def test_a_damaged_file_is_named(registry: Registry, tmp_path: Path) -> None:
    number = _register(registry, tmp_path, 1)
    standing = registry.index.standing("default", number)
    sha256 = standing.entry.tokenizer
    path = registry.root / "files" / sha256[:2] / sha256
    path.write_bytes(b"{}")
    (problem,) = registry.problems(standing)
    assert "tokenizer.json" in problem
    assert sha256 in problem
    with pytest.raises(RegistryIntegrityError, match=r"tokenizer\.json"):
        registry.export(standing, tmp_path / "out", readme="")
    path.unlink()
    assert "is missing" in registry.problems(standing)[0]
    _register(registry, tmp_path, 2)
    assert registry.problems(standing) == [], "the same file came again, and is whole"


@pytest.mark.parametrize("what", ["tokenizer", "shape"])
def test_a_child_must_fit_into_its_parents_place(registry: Registry, tmp_path: Path, what: str) -> None:
    parent = _register(registry, tmp_path, 1)
    store, version = published(tmp_path / "other", 2, rows=9 if what == "shape" else 8)
    files = FILES | ({"tokenizer.json": b"{}"} if what == "tokenizer" else {})
    with pytest.raises(RegistryError, match=f"another {what}"):
        registry.register("default", store, version, files, candidate(parent), actor="ann")
    assert len(registry.index.entries("default")) == 1
    assert registry.weights.store("default").versions() == [1]
    assert registry.register("default", store, version, files, candidate(), actor="ann").number == 2


def test_retention_keeps_what_somebody_needs(registry: Registry, tmp_path: Path) -> None:
    numbers = [_register(registry, tmp_path, seed) for seed in range(7)]
    for number in numbers[:4]:
        registry.index.set_stage("default", number, "passed", actor="ann", reason="x", unproven=True)
    with registry.lease("default", "ann") as lease:
        registry.index.aliases.move(lease, {"stable": 1}, actor="ann", reason="first")
        registry.index.aliases.move(lease, {"stable": 2}, actor="ann", reason="better")
    registry.index.set_stage("default", 3, "canary", actor="ann", reason="trial")
    assert registry.retain("default", Retention(2), actor="ann") == [4, 5]
    assert registry.weights.store("default").versions() == [1, 2, 3, 6, 7]
    assert [s.entry.number for s in registry.index.entries("default") if s.has_weights] == [7, 6, 3, 2, 1]
    assert registry.retain("default", Retention(2), actor="ann") == []
    for number in (1, 2, 3, 6, 7):
        assert registry.problems(registry.index.standing("default", number)) == []
    with pytest.raises(RegistryError, match="weights of entry default/4 were removed"):
        registry.manifest(registry.index.standing("default", 4))
    with pytest.raises(RegistryError, match="at least 1"):
        Retention(0)


_KILLED = """
import os, sys
from pathlib import Path
from serving_bridge.registry import Registry, Retention
from tests.support.registries import FILES, candidate, published
root = Path(sys.argv[1])
registry = Registry(root / "registry")
if sys.argv[2] == "register":
    store, version = published(root / "weights", 9)
    registry.register("default", store, version, FILES, candidate(), actor="ann")
else:
    registry.retain("default", Retention(1), actor="ann")
"""


@pytest.mark.parametrize("point", ["registry.files", "registry.weights", "registry.forgotten"])
def test_a_registration_or_retention_that_is_killed_leaves_a_whole_registry(tmp_path: Path, point: str) -> None:
    registry = Registry(tmp_path / "registry")
    for seed in range(3):
        _register(registry, tmp_path, seed)
    what = "retain" if point == "registry.forgotten" else "register"
    ended = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path), what], env=os.environ | {"WEIR_CRASH_AT": point}, check=False
    )
    assert ended.returncode < 0, "it was killed"
    assert registry.index.check_chain("default") == []
    kept = [standing for standing in registry.index.entries("default") if standing.has_weights]
    assert all(registry.problems(standing) == [] for standing in kept)
    registry.index.aliases.take_named_lease("default.weights", "person", 1, by_force=True)  # the dead one's
    registry.index.aliases.take_named_lease("default.weights", "person", 1)
    clock_later = Registry(tmp_path / "registry", clock=lambda: 1e12)
    number = _register(clock_later, tmp_path, 20)
    clock_later.retain("default", Retention(1), actor="ann")
    assert clock_later.problems(clock_later.index.standing("default", number)) == []
    assert len(clock_later.weights.store("default").versions()) == 1, "nothing is left of the killed one"
    clock_later.close()
    registry.close()


def test_a_process_that_is_no_more_keeps_nobody_out(registry: Registry, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    aliases = registry.index.aliases
    old = aliases.take_named_lease("default.weights", f"{socket.gethostname()}:{ended.pid}:ab12", 3600.0)
    assert _register(registry, tmp_path, 1) == 1
    with pytest.raises(NotHolderError):
        aliases.check_lease(old)
    aliases.take_named_lease("default.weights", "elsewhere:1:ab12", 3600.0)
    registry.weights._wait_s = 0.3
    with pytest.raises(RegistryError, match="gave up"):
        _register(registry, tmp_path, 2)


def test_two_registrations_of_a_namespace_wait_for_each_other(registry: Registry, tmp_path: Path) -> None:
    registry.index.aliases.take_named_lease("default.weights", "another host", 60)
    impatient = Registry(tmp_path / "registry", files_wait_s=0.3)
    with pytest.raises(RegistryError, match="the weights of default"):
        _register(impatient, tmp_path, 1)
    assert registry.index.entries("default") == []
    impatient.close()
