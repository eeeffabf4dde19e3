"""Signatures of entries: an elliptic key signs what an entry says, and the manifest that its weights are loaded by.

Both name their files by sha256, so a signature covers every byte that is served. It is a bundle of `model-signing`
(OpenSSF), made and checked without a network. The package is optional, and imported where a signature is made or read.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from learner_jax.contracts import quoted
from serving_bridge.registry.errors import RegistryError, RegistryIntegrityError

SIGNATURE_NAME = "model.sig"
#: Environment variable of the password of an encrypted private key.
PASSWORD_VARIABLE = "WEIR_SIGNING_PASSWORD"
MAX_SIGNATURE_BYTES = 2**20
_MAX_KEY_BYTES = 2**16
_PUBLIC_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----[A-Za-z0-9+/=\s]+-----END PUBLIC KEY-----\s*")
_CURVES = "prime256v1, secp384r1 or secp521r1"
#: The folder that is signed: its name is part of the signature.
_SUBJECT = "entry"


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys of which one must have signed what is served.

    Attributes:
      keys: sha256 of a key, as signatures name it -> the key as PEM.
      source: the file that they are from, for messages.
    """

    keys: Mapping[str, bytes]
    source: str


def read_trusted_keys(path: Path) -> TrustedKeys:
    """The public keys of a PEM file; one that holds several trusts each of them.

    Raises:
      RegistryError: it can't be read, or holds no public key of a curve that is supported.
    """
    content = _read_key(path)
    found = {}
    for pem in _PUBLIC_KEY.findall(content):
        key = _normal(pem, path)
        found[hashlib.sha256(key).hexdigest()] = key
    if not found:
        raise RegistryError(
            f"{path} holds no public key: expected PEM of an elliptic curve ({_CURVES}), as `openssl ec -pubout` writes"
        )
    return TrustedKeys(found, str(path))


def check_private_key(private_key: Path, *, password: str | None = None) -> None:
    """Raises `RegistryError` for a key that `sign` can't use."""
    _signer(private_key, password)


def sign(files: Mapping[str, bytes], private_key: Path, *, password: str | None = None) -> bytes:
    """A signature of files, as a bundle in JSON.

    Args:
      files: name -> content; the names are signed, too.
      private_key: PEM file of an elliptic curve.
      password: of the key, where it is encrypted.

    Raises:
      RegistryError: the key can't be used, or the package is not there.
    """
    signer = _signer(private_key, password)
    with tempfile.TemporaryDirectory(prefix="weir-sign-") as scratch:
        signature = Path(scratch) / SIGNATURE_NAME
        signer.sign(_written(files, scratch), signature)
        return signature.read_bytes()


def sign_folder(folder: Path, private_key: Path, *, password: str | None = None) -> None:
    """Signs a model folder as a whole, as `model.sig` in it, which the command `model_signing verify` reads, too.

    Raises:
      RegistryError: as `sign`.
    """
    signer = _signer(private_key, password)
    hashing = _library("hashing").Config().set_ignored_paths(paths=[folder / SIGNATURE_NAME])
    signer.set_hashing_config(hashing).sign(folder, folder / SIGNATURE_NAME)


def verify_folder(folder: Path, trusted: TrustedKeys) -> str:
    """Checks the `model.sig` of a model folder, and returns the key that made it.

    Raises:
      RegistryIntegrityError: as `verify`.
    """
    path = folder / SIGNATURE_NAME
    try:
        signature = path.read_bytes() if path.stat().st_size <= MAX_SIGNATURE_BYTES else b""
    except OSError as error:
        raise RegistryIntegrityError(f"{folder} is not signed: {error}") from error
    key = signer_of(signature, trusted)
    _check(signature, trusted.keys[key], folder)
    return key


def verify(files: Mapping[str, bytes], signature: bytes, trusted: TrustedKeys) -> str:
    """Returns the key that signed these files, as `TrustedKeys` names it.

    Raises:
      RegistryIntegrityError: no trusted key signed them; names what differs.
      RegistryError: the package is not there.
    """
    key = signer_of(signature, trusted)
    with tempfile.TemporaryDirectory(prefix="weir-verify-") as scratch:
        _check(signature, trusted.keys[key], _written(files, scratch))
    return key


def first_valid(files: Mapping[str, bytes], signatures: Sequence[bytes], trusted: TrustedKeys) -> str:
    """The key of the first signature that holds, as `verify`. Raises what the last one failed by."""
    problem = RegistryIntegrityError(
        f"it has no signature, and one by a key of {trusted.source} is demanded: sign it (tools.registry sign)"
    )
    for signature in signatures:
        try:
            return verify(files, signature, trusted)
        except RegistryIntegrityError as error:
            problem = error
    raise problem


def key_of(signature: bytes) -> str:
    """The key that a signature says it was made by: sha256 of its PEM. Raises `RegistryIntegrityError`."""
    try:
        said = msgspec.json.decode(signature, type=_Bundle).verification_material.public_key.hint
    except msgspec.MsgspecError as error:
        raise RegistryIntegrityError(f"the signature is no bundle of model-signing: {quoted(str(error))}") from error
    if not re.fullmatch(r"[0-9a-f]{64}", said):
        raise RegistryIntegrityError(f"the signature names no key, got {quoted(said, 80)}, expected its sha256")
    return said


def signer_of(signature: bytes, trusted: TrustedKeys) -> str:
    """The trusted key that a signature says it was made by. Raises `RegistryIntegrityError` if it is none of them."""
    key = key_of(signature)
    if key not in trusted.keys:
        known = ", ".join(one[:12] for one in trusted.keys)
        raise RegistryIntegrityError(
            f"the signature is by key {key[:12]}, which is not trusted: {trusted.source} has {known}"
        )
    return key


class _KeyName(msgspec.Struct):
    hint: str


class _Material(msgspec.Struct, rename="camel"):
    public_key: _KeyName


class _Bundle(msgspec.Struct, rename="camel"):
    """The part of a bundle that says by which key it was made."""

    verification_material: _Material


def _signer(private_key: Path, password: str | None) -> Any:
    signing = _library("signing")
    _read_key(private_key)
    try:
        return signing.Config().use_elliptic_key_signer(
            private_key=private_key, password=password.encode() if password else None
        )
    except Exception as error:  # the file may be any, and the library raises as many kinds
        raise RegistryError(
            f"{private_key} can't sign: {quoted(str(error), 200)}: expected the private key of an elliptic curve "
            f"({_CURVES}) as PEM, and its password, if it has one, in {PASSWORD_VARIABLE}"
        ) from error


def _check(signature: bytes, key: bytes, folder: Path) -> None:
    verifying = _library("verifying")
    with tempfile.TemporaryDirectory(prefix="weir-key-") as scratch:
        pem, bundle = Path(scratch) / "key.pem", Path(scratch) / SIGNATURE_NAME
        pem.write_bytes(key)
        bundle.write_bytes(signature)
        config = verifying.Config().use_elliptic_key_verifier(public_key=pem)
        try:
            config.verify(folder, bundle)
        except Exception as error:  # the bundle may be anything, and the library raises as many kinds
            said = str(error) or type(error).__name__
            raise RegistryIntegrityError(f"the signature does not hold: {quoted(said, 400)}") from error


def _written(files: Mapping[str, bytes], scratch: str) -> Path:
    folder = Path(scratch) / _SUBJECT
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _read_key(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file() or size > _MAX_KEY_BYTES:
            raise RegistryError(f"{path} is no key: expected a PEM file of at most {_MAX_KEY_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise RegistryError(f"key {path} can't be read: {error}") from error


def _normal(pem: bytes, path: Path) -> bytes:
    """A public key as signatures hash it."""
    _library("signing")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RegistryError(f"{path} holds a public key that can't be read: {quoted(str(error), 200)}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise RegistryError(f"{path} holds a key of another kind, expected an elliptic curve: {_CURVES}")
    return key.public_bytes(encoding=serialization.Encoding.PEM, format=serialization.PublicFormat.SubjectPublicKeyInfo)


def _library(name: str) -> ModuleType | Any:
    try:
        from model_signing import hashing, signing, verifying
    except ImportError as error:
        raise RegistryError(
            f"signatures need the package model-signing, which can't be imported ({error}): pip install 'weir[signing]'"
        ) from error
    return {"signing": signing, "verifying": verifying, "hashing": hashing}[name]
