"""A registry whose weights and files are in object storage, on a real S3 server: as in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
from safetensors import safe_open

from serving_bridge.registry import (
    Registry,
    RegistryError,
    RegistryIntegrityError,
    Retention,
    Standing,
    read_trusted_keys,
)
from serving_bridge.storage import StorageError
from serving_bridge.weights import ShelfOptions, WeightIntegrityError, read_version
from tests.support.registries import FILES, candidate, published
from tests.support.s3 import S3, Fault
from tests.support.signing_keys import private_key, public_of

#: one server for all tests on it
pytest_plugins = ["tests.support.s3_fixtures"]

URL = "s3://bucket/registry"
Opener = Callable[..., Registry]


@pytest.fixture
def opened(s3: S3, tmp_path: Path) -> Iterator[Opener]:
    """Opens the registry as a process of a host does; only the index is shared by hosts."""
    registries: list[Registry] = []

    def open_(host: str = "host", storage: str = "", **more: object) -> Registry:
        options = ShelfOptions(cache=tmp_path / host / "cache", cache_bytes=10**6, timeout_s=0.05)
        found = Registry(
            tmp_path / host,
            database=str(tmp_path / "index.sqlite"),
            storage=storage,
            options=options,
            **more,  # type: ignore[arg-type]
        )
        registries.append(found)
        return found

    yield open_
    for registry in registries:
        registry.close()


def _add(registry: Registry, folder: Path, seed: int) -> Standing:
    store, version = published(folder, seed)
    number = registry.register("acme", store, version, FILES, candidate(), actor="ann").number
    return registry.index.standing("acme", number)


def _keys(s3: S3) -> set[str]:
    found = s3.client().list_objects_v2(Bucket="bucket").get("Contents", [])
    return {one["Key"] for one in found}


def _flip(s3: S3, key: str) -> None:
    client = s3.client()
    content = bytearray(client.get_object(Bucket="bucket", Key=key)["Body"].read())
    content[-1] ^= 1
    client.put_object(Bucket="bucket", Key=key, Body=bytes(content))


def test_what_one_host_registers_another_exports_and_serves(opened: Opener, s3: S3, tmp_path: Path) -> None:
    standing = _add(opened("first", URL), tmp_path / "run", 1)
    assert {key.split("/")[1] for key in _keys(s3)} == {"files", "weights"}
    assert not [path for path in (tmp_path / "first").rglob("*") if "cache" not in path.parts and path.is_file()]
    other = opened("second")  # told by the index where weights are
    assert other.weights.store("acme").address == f"{URL}/weights/acme"
    assert other.problems(standing) == []
    other.move("acme", {"stable": 1}, holder="x", actor="ann", reason="first", unproven=True)
    assert other.placement("acme").stable is not None
    other.export(standing, tmp_path / "out", readme="card")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == FILES
    store, version = published(tmp_path / "again", 1)
    expected = {name: tensor.words.tolist() for name, tensor in read_version(store, version).items()}
    found = read_version(other.weights.store("acme"), standing.entry.weight_version)
    assert {name: tensor.words.tolist() for name, tensor in found.items()} == expected
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(expected)


def test_a_flipped_byte_of_an_object_is_named_and_nothing_moves(opened: Opener, s3: S3, tmp_path: Path) -> None:
    registry = opened(storage=URL)
    standing = _add(registry, tmp_path / "run", 1)
    fresh = opened("another")
    (weights,) = (key for key in _keys(s3) if key.endswith("weights.safetensors"))
    _flip(s3, weights)
    (problem,) = fresh.problems(standing)
    assert "acme/1" in problem
    assert f"{URL}/weights/acme/v00000001/weights.safetensors" in problem
    with pytest.raises(WeightIntegrityError, match=r"weights\.safetensors"):
        fresh.export(standing, tmp_path / "out", readme="")
    _flip(s3, weights)
    (tokenizer,) = (file for file in standing.entry.files if file.name == "tokenizer.json")
    _flip(s3, f"registry/files/{tokenizer.sha256[:2]}/{tokenizer.sha256}")
    with pytest.raises(RegistryIntegrityError, match=r"tokenizer\.json \(s3://bucket/registry/files.* has sha256"):
        fresh.move("acme", {"stable": 1}, holder="x", actor="ann", reason="first", unproven=True)
    assert fresh.index.aliases.current("acme") == {}


def test_signatures_and_reports_are_kept_there_too(opened: Opener, tmp_path: Path) -> None:
    key = private_key(tmp_path / "ann.pem")
    standing = _add(opened(storage=URL), tmp_path / "run", 1)
    demanding = opened("second", trusted=read_trusted_keys(public_of(key)))
    with pytest.raises(RegistryIntegrityError, match="no signature"):
        demanding.manifest(standing)
    demanding.sign(standing, key, actor="ann")
    demanding.add_report("acme", 1, "gate.json", b"{}", verdict="passed", actor="gate")
    assert demanding.problems(standing) == []


def test_retention_deletes_objects_that_nobody_needs(opened: Opener, s3: S3, tmp_path: Path) -> None:
    registry = opened(storage=URL)
    for seed in (1, 2, 3):
        _add(registry, tmp_path / f"run-{seed}", seed)
    registry.move("acme", {"stable": 1}, holder="x", actor="ann", reason="first", unproven=True)
    assert registry.retain("acme", Retention(1), actor="ann") == [2]
    versions = {key.split("/")[3] for key in _keys(s3) if key.startswith("registry/weights/")}
    assert versions == {"v00000001", "v00000003"}
    assert registry.problems(registry.index.standing("acme", 2)) == [], "its small files stay"
    with pytest.raises(RegistryError, match="were removed"):
        registry.manifest(registry.index.standing("acme", 2))


def test_storage_that_is_away_is_one_clear_error_and_registers_nothing(opened: Opener, s3: S3, tmp_path: Path) -> None:
    registry = opened(storage=URL)
    s3.faults.append(Fault("503", "PUT"))
    with pytest.raises(StorageError, match="bucket/registry"):
        _add(registry, tmp_path / "run", 1)
    assert registry.index.entries("acme") == []
    s3.faults.clear()
    assert _add(registry, tmp_path / "run", 1).entry.number == 1


def test_a_registry_keeps_the_place_that_it_began_with(opened: Opener, tmp_path: Path) -> None:
    registry = opened()
    store, version = published(tmp_path / "run", 1)
    registry.register("acme", store, version, FILES, candidate(), actor="ann")
    with pytest.raises(RegistryError, match=r"keeps weights and files in its folder.*a new registry"):
        opened("other", URL)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:secret@bucket/x", "holds credentials"),
        ("memory://bucket/x", "every process would have one of its own"),
        ("s3://bucket/../x y", "names no place"),
    ],
)
def test_urls_that_can_hold_no_registry_are_refused(opened: Opener, url: str, said: str) -> None:
    with pytest.raises(RegistryError, match=said) as caught:
        opened(storage=url)
    assert "secret" not in str(caught.value)


def test_a_row_that_names_no_storage_is_one_clear_error(opened: Opener, tmp_path: Path) -> None:
    opened(storage=URL)
    connection = apsw.Connection(str(tmp_path / "index.sqlite"))
    connection.execute("UPDATE registry_storage SET url = 'file:///etc'")
    connection.close()
    with pytest.raises(RegistryIntegrityError, match="row of registry_storage was changed"):
        opened("second")
