"""API keys: their form, their checksum, and what is stored of them."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_bridge.access import AccessError
from serving_bridge.tenants.api_keys import PATTERN, PREFIX, is_well_formed, new_key
from serving_bridge.tenants.secret import SECRET_FILE, DeploymentSecret

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def number(text: str) -> int:
    value = 0
    for digit in text:
        value = 62 * value + DIGITS.index(digit)
    return value


@given(st.binary(min_size=32, max_size=32))
def test_a_key_carries_all_its_random_bits_and_a_checksum(random: bytes) -> None:
    key = new_key(lambda size: random[:size])
    assert PATTERN.fullmatch(key)
    body, check = key[len(PREFIX) : -6], key[-6:]
    assert number(body) == int.from_bytes(random, "big")
    assert number(check) == zlib.crc32((PREFIX + body).encode())
    assert is_well_formed(key)


@given(st.integers(0, 56), st.sampled_from(DIGITS))
def test_no_changed_character_passes_the_checksum(place: int, digit: str) -> None:
    key = new_key(lambda size: bytes(range(size)))
    changed = key[:place] + digit + key[place + 1 :]
    assert is_well_formed(changed) == (changed == key)


@pytest.mark.parametrize("key", ["", "weir_sk_", "sk-abc", "weir_sk_" + "0" * 49, "weir_sk_" + "\u0660" * 49, "\ud800"])
def test_other_texts_are_no_keys(key: str) -> None:
    assert not is_well_formed(key)


def test_two_keys_differ() -> None:
    assert new_key() != new_key()


def test_digest_and_salt_depend_on_the_secret_and_on_all_they_are_of() -> None:
    one, other = DeploymentSecret(bytes(32)), DeploymentSecret(bytes([1] * 32))
    key = new_key()
    assert len({one.digest(key), other.digest(key), one.digest(new_key())}) == 3
    salts = {
        *(secret.cache_salt(tenant, generation) for secret in (one, other) for tenant, generation in SALTED),
    }
    assert len(salts) == 2 * len(SALTED)
    assert one.cache_salt("acme", 3) == DeploymentSecret(bytes(32)).cache_salt("acme", 3)
    assert one.cache_salt("acme", 0) not in one.digest("acme").hex()


SALTED = [("acme", 0), ("acme", 1), ("acme1", 0), ("other", 0)]


def test_the_secret_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    with pytest.raises(AccessError, match=r"(tenants.key|keys).*--secret"):
        DeploymentSecret.in_folder(folder)
    made = DeploymentSecret.in_folder(folder, make=True)
    again = DeploymentSecret.in_folder(folder, make=True)
    assert made.cache_salt("acme", 0) == again.cache_salt("acme", 0)
    assert (folder / SECRET_FILE).stat().st_mode & 0o777 == 0o600
    (folder / SECRET_FILE).chmod(0o644)
    with pytest.raises(AccessError, match="others may know"):
        DeploymentSecret.in_folder(folder)
