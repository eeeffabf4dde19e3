"""Keys that entries of a registry are signed with, the same in every run."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa


def private_key(path: Path, *, seed: int = 7, password: str = "") -> Path:
    """A private key on P-256, the same for the same seed, and its public key beside it."""
    key = ec.derive_private_key(seed, ec.SECP256R1())
    hidden = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
    public_of(path).write_bytes(public_pem(key))
    return path


def public_of(path: Path) -> Path:
    return path.with_suffix(".pub")


def public_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
