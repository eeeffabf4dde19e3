"""Addresses of others that settings name: what can be posted to."""

from __future__ import annotations

from urllib.parse import urlsplit


def check_address(setting: str, address: str) -> None:
    """Raises `ValueError` for what is no http or https address, or holds a password."""
    try:
        parts = urlsplit(address)
        plain = not (parts.username or parts.password or parts.fragment)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        plain, usable = True, False
    if not plain or not usable or not address.isprintable():
        raise ValueError(f"{setting}: expected https://host/path or http://host:port/path, without a password")
