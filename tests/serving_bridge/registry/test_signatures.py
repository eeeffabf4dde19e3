"""Signed entries: what a trusted key signed is served, and nothing that differs from it by a byte or a key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from learner_jax.contracts import WeightManifest
from serving_bridge.registry import (
    Registry,
    RegistryError,
    RegistryIntegrityError,
    Standing,
    model_card,
    read_trusted_keys,
    sign_folder,
    verify_folder,
)
from serving_bridge.registry.signatures import verify
from serving_bridge.weights import WeightIntegrityError, WeightStore
from tests.support.forged_weights import forge
from tests.support.registries import FILES, candidate, published
from tests.support.signing_keys import private_key, public_of, public_pem

PASSWORD = "correct horse"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return private_key(tmp_path / "ann.pem")


@pytest.fixture
def registry(tmp_path: Path, key: Path) -> Iterator[Registry]:
    """It demands a signature by `key`."""
    found = Registry(tmp_path / "registry", trusted=read_trusted_keys(public_of(key)))
    yield found
    found.close()


def _entry(registry: Registry, tmp_path: Path, seed: int = 1) -> Standing:
    store, version = published(tmp_path / "weights", seed)
    number = registry.register("default", store, version, FILES, candidate(), actor="ann").number
    return registry.index.standing("default", number)


def _move(registry: Registry, number: int = 1) -> int:
    return registry.move("default", {"stable": number}, holder="x", actor="ann", reason="first", unproven=True)


def test_what_the_trusted_key_signed_is_moved_to_and_read(registry: Registry, tmp_path: Path, key: Path) -> None:
    standing = _entry(registry, tmp_path)
    name = registry.sign(standing, key, actor="ann")
    assert registry.problems(standing) == []
    assert registry.manifest(standing).content_sha256 == standing.entry.content
    assert _move(registry) == 1
    assert f"| `{name}` |" in model_card(standing, registry.index.events("default", 1))


def test_the_signature_is_over_entry_and_manifest_by_ecdsa(registry: Registry, tmp_path: Path, key: Path) -> None:
    """Read by hand: an in-toto statement in a DSSE envelope, signed over its pre-authentication encoding."""
    import base64
    import hashlib

    standing = _entry(registry, tmp_path)
    registry.sign(standing, key, actor="ann")
    (event,) = [event for event in registry.index.events("default", 1) if event.kind == "signature"]
    kept = registry.root / "files" / event.body["file"]["sha256"][:2] / event.body["file"]["sha256"]
    envelope = json.loads(kept.read_bytes())["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"]
    encoded = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    public = ec.derive_private_key(7, ec.SECP256R1()).public_key()
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), encoded, ec.ECDSA(hashes.SHA256()))
    signed = {one["name"]: one["digest"] for one in json.loads(payload)["predicate"]["resources"]}
    manifest = registry.root / "weights" / "default" / "v00000001" / "manifest.json"
    assert signed == {
        "entry.json": hashlib.sha256(standing.document.encode()).hexdigest(),
        "manifest.json": hashlib.sha256(manifest.read_bytes()).hexdigest(),
    }


def test_an_unsigned_entry_is_neither_moved_to_nor_read(registry: Registry, tmp_path: Path) -> None:
    standing = _entry(registry, tmp_path)
    with pytest.raises(RegistryIntegrityError, match=r"default/1: it has no signature.*tools\.registry sign"):
        _move(registry)
    with pytest.raises(RegistryIntegrityError, match="no signature"):
        registry.manifest(standing)
    with pytest.raises(RegistryIntegrityError, match="no signature"):
        registry.export(standing, tmp_path / "out", readme="")
    assert registry.index.aliases.current("default") == {}


def test_another_key_is_named_and_not_believed(registry: Registry, tmp_path: Path, key: Path) -> None:
    standing = _entry(registry, tmp_path)
    other = registry.sign(standing, private_key(tmp_path / "eve.pem", seed=9), actor="eve")
    with pytest.raises(RegistryIntegrityError, match=f"by key {other[:12]}, which is not trusted: .*ann.pub has"):
        _move(registry)
    registry.sign(standing, key, actor="ann")  # one good signature of several is enough
    assert _move(registry) == 1


def test_a_file_of_two_public_keys_trusts_both(registry: Registry, tmp_path: Path, key: Path) -> None:
    other = private_key(tmp_path / "bob.pem", seed=11)
    both = tmp_path / "both.pub"
    both.write_bytes(public_of(key).read_bytes() + public_of(other).read_bytes())
    assert len(read_trusted_keys(both).keys) == 2
    standing = _entry(registry, tmp_path)
    registry.sign(standing, other, actor="bob")
    newer = Registry(registry.root, trusted=read_trusted_keys(both))
    try:
        assert newer.problems(standing) == []
    finally:
        newer.close()


def test_a_changed_manifest_is_refused_though_its_own_hashes_fit(registry: Registry, tmp_path: Path, key: Path) -> None:
    """Whoever can write the weights can write hashes that fit them; he can't sign."""
    standing = _entry(registry, tmp_path)
    registry.sign(standing, key, actor="ann")
    path = registry.root / "weights" / "default" / "v00000001" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["step"] += 1
    path.write_text(json.dumps(manifest))
    (problem,) = registry.problems(standing)
    assert "default/1: the signature does not hold" in problem
    assert "manifest.json" in problem
    with pytest.raises(RegistryIntegrityError, match="does not hold"):
        registry.manifest(standing)


def test_weights_that_are_exchanged_while_an_entry_is_exported_are_refused(
    registry: Registry, tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every file was hashed, and with tensor hashes that fit: what was signed names the file by sha256."""
    standing = _entry(registry, tmp_path)
    registry.sign(standing, key, actor="ann")
    store, manifest = registry.weights.store("default"), registry.manifest(standing)
    verify_all = WeightStore.verify

    def late(self: WeightStore, checked: WeightManifest) -> None:
        verify_all(self, checked)
        forge(store, manifest, monkeypatch)

    monkeypatch.setattr(WeightStore, "verify", late)
    with pytest.raises(WeightIntegrityError, match=r"weights\.safetensors has sha256"):
        registry.export(standing, tmp_path / "out", readme="")
    assert not (tmp_path / "out").exists()


def test_a_flipped_byte_of_weights_is_never_signed(registry: Registry, tmp_path: Path, key: Path) -> None:
    standing = _entry(registry, tmp_path)
    weights = registry.root / "weights" / "default" / "v00000001" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RegistryIntegrityError, match=r"weights\.safetensors"):
        registry.sign(standing, key, actor="ann")
    assert [event.kind for event in registry.index.events("default", 1)] == ["registered"]


def test_the_signature_of_another_entry_does_not_hold(registry: Registry, tmp_path: Path, key: Path) -> None:
    signed, other = _entry(registry, tmp_path, 1), _entry(registry, tmp_path, 2)
    registry.sign(signed, key, actor="ann")
    (event,) = [event for event in registry.index.events("default", 1) if event.kind == "signature"]
    registry.index.add_signature("default", other.entry.number, event.body, actor="eve")
    (problem,) = registry.problems(other)
    assert "default/2: the signature does not hold" in problem


def test_a_signature_with_a_flipped_byte_does_not_hold(registry: Registry, tmp_path: Path, key: Path) -> None:
    standing = _entry(registry, tmp_path)
    registry.sign(standing, key, actor="ann")
    (event,) = [event for event in registry.index.events("default", 1) if event.kind == "signature"]
    path = registry.root / "files" / event.body["file"]["sha256"][:2] / event.body["file"]["sha256"]
    whole = path.read_bytes()
    path.write_bytes(_flipped(whole, len(whole) // 2))
    (problem,) = registry.problems(standing)
    assert "model.sig" in problem
    assert "expected" in problem
    path.write_bytes(whole)
    trusted, (_, signed) = read_trusted_keys(public_of(key)), registry._entries._read_manifest(standing)
    parts = json.loads(whole)
    hint = parts["verificationMaterial"]["publicKey"]["hint"].encode()
    payload = parts["dsseEnvelope"]["payload"].encode()
    made = parts["dsseEnvelope"]["signatures"][0]["sig"].encode()
    for inner in (hint, payload, made):
        with pytest.raises(RegistryIntegrityError, match="not trusted|does not hold|names no key"):
            verify(signed, _flipped(whole, whole.index(inner) + 20), trusted)


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("bundle", "said"),
    [
        (b"", "no bundle"),
        (b'{"verificationMaterial": 1}', "no bundle"),
        (b'{"verificationMaterial": {"publicKey": {"hint": "\\u001b[31m"}}}', "names no key"),
        (b"HINT", "does not hold"),
    ],
)
def test_a_hostile_signature_is_one_clear_error(
    registry: Registry, tmp_path: Path, key: Path, bundle: bytes, said: str
) -> None:
    standing = _entry(registry, tmp_path)
    (hint,) = read_trusted_keys(public_of(key)).keys
    content = bundle.replace(b"HINT", b'{"verificationMaterial": {"publicKey": {"hint": "%s"}}}' % hint.encode())
    file = registry.files.keep("model.sig", content)
    body = {"key": hint, "file": {"name": file.name, "num_bytes": file.num_bytes, "sha256": file.sha256}}
    registry.index.add_signature("default", 1, body, actor="eve")
    with pytest.raises(RegistryIntegrityError, match=said) as caught:
        registry.manifest(standing)
    assert "\x1b" not in str(caught.value)


def test_keys_that_are_none_are_refused_with_what_was_expected(registry: Registry, tmp_path: Path, key: Path) -> None:
    standing = _entry(registry, tmp_path)
    locked = private_key(tmp_path / "locked.pem", password=PASSWORD)
    with pytest.raises(RegistryError, match="WEIR_SIGNING_PASSWORD"):
        registry.sign(standing, locked, actor="ann")
    with pytest.raises(RegistryError, match="can't sign"):
        registry.sign(standing, locked, password="wrong", actor="ann")
    registry.sign(standing, locked, password=PASSWORD, actor="ann")
    with pytest.raises(RegistryError, match="can't sign"):
        registry.sign(standing, public_of(key), actor="ann")
    with pytest.raises(RegistryError, match=r"nowhere\.pem can't be read"):
        registry.sign(standing, tmp_path / "nowhere.pem", actor="ann")
    with pytest.raises(RegistryError, match="holds no public key"):
        read_trusted_keys(key)
    other = tmp_path / "rsa.pub"
    other.write_bytes(public_pem(rsa.generate_private_key(65537, 2048)))
    with pytest.raises(RegistryError, match="another kind, expected an elliptic curve"):
        read_trusted_keys(other)


def test_an_exported_folder_is_signed_whole(tmp_path: Path, key: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    trusted = read_trusted_keys(public_of(key))
    with pytest.raises(RegistryIntegrityError, match="is not signed"):
        verify_folder(folder, trusted)
    sign_folder(folder, key)
    (name,) = trusted.keys
    assert verify_folder(folder, trusted) == name
    (folder / "config.json").write_bytes(b'{"model_type": "qwen3"}')
    with pytest.raises(RegistryIntegrityError, match=r"does not hold.*config\.json"):
        verify_folder(folder, trusted)
    (folder / "config.json").write_bytes(FILES["config.json"])
    (folder / "more.json").write_bytes(b"{}")
    with pytest.raises(RegistryIntegrityError, match=r"Extra files.*more\.json"):
        verify_folder(folder, trusted)
