"""Checksums against published examples, and against every single digit that is wrong."""

from __future__ import annotations

import pytest

from serving_bridge.safety import checksums

IBANS = ["DE89370400440532013000", "GB82WEST12345698765432", "FR1420041010050500013M02606", "NO9386011117947"]


@pytest.mark.parametrize("text", IBANS)
def test_an_iban_with_one_other_digit_is_none(text: str) -> None:
    assert checksums.iban(text)
    for place, character in enumerate(text):
        if character.isdigit():
            other = text[:place] + str((int(character) + 1) % 10) + text[place + 1 :]
            assert not checksums.iban(other)


@pytest.mark.parametrize("digits", ["4111111111111111", "5555555555554444", "378282246310005", "6011111111111117"])
def test_a_card_with_one_other_digit_is_none(digits: str) -> None:
    assert checksums.card(digits)
    for place, digit in enumerate(digits):
        assert not checksums.luhn(digits[:place] + str((int(digit) + 1) % 10) + digits[place + 1 :])


def test_addresses_of_wallets() -> None:
    assert checksums.base58check("1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2")
    assert not checksums.base58check("1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN3")
    assert checksums.bech32("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4")
    assert checksums.bech32("bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0")
    assert not checksums.bech32("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5")


def test_numbers_of_vehicles_and_persons() -> None:
    assert checksums.vehicle("1M8GDM9AXKP042788")
    assert not checksums.vehicle("1M8GDM9A1KP042788")
    assert checksums.social_security_number("536221234")
    refused = ["000221234", "666221234", "900221234", "536001234", "536220000"]
    assert not any(map(checksums.social_security_number, refused))
