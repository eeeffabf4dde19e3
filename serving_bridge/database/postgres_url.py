"""What a PostgreSQL URL of ours may say: no secret stands in it, and no impostor of the server is told one."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from serving_bridge.database.database import DatabaseError, secret_in_url

_MAX_NAME = 63  # PostgreSQL cuts longer ones, after which two could be the same
#: Ways to prove who one is that tell the server the password, or a hash that serves as one.
_TELLING = ("password", "md5")
_SCRAM = "scram-sha-256"


def split_url(url: str, environment: Mapping[str, str] = os.environ) -> tuple[str, str, str]:
    """(what libpq takes, schema, name for messages) of a URL.

    Off this machine the connection must be `sslmode=verify-full` and the server must use SCRAM, which proves that it
    knows the password too. On this machine a password is never sent in clear either, unless `require_auth` says so.

    Raises:
      DatabaseError: it holds a password, a schema of too long a name, or settings that would not protect one.
    """
    from psycopg import ProgrammingError  # a driver that runs on one machine do without
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    if problem := secret_in_url(url):
        raise DatabaseError(problem)
    parts = urlsplit(url)
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    schema = dict(parameters).get("schema", "weir")
    if len(schema.encode()) > _MAX_NAME:
        raise DatabaseError(f"schema {schema!r}: expected at most {_MAX_NAME} bytes (run.name, or ?schema= of the URL)")
    rest = urlencode([(key, value) for key, value in parameters if key != "schema"])
    bare = f"postgresql://{parts.netloc}{parts.path}{'?' if rest else ''}{rest}"
    name = f"postgresql://{parts.netloc}{parts.path}?schema={schema}"
    try:
        settings = {key: str(value) for key, value in conninfo_to_dict(bare).items()}
    except ProgrammingError as error:
        raise DatabaseError(f"{name}: {' '.join(str(error).split())} (store.database)") from error
    return make_conninfo(**settings | _protection(settings, environment, name)), schema, name


def _protection(settings: Mapping[str, str], environment: Mapping[str, str], name: str) -> dict[str, str]:
    """Settings of libpq that keep the password from whoever answers at the server's address."""
    asked = settings.get("require_auth", "")
    if _is_local(settings, environment):
        return {"require_auth": asked or f"{_SCRAM},none"}
    mode = settings.get("sslmode", "verify-full")
    if mode != "verify-full":
        raise DatabaseError(
            f"{name}: sslmode is {mode}, which lets another machine pass for the server: expected verify-full, with "
            f"sslrootcert=FILE naming the certificate authority (store.database)"
        )
    if telling := [method for method in asked.split(",") if method in _TELLING or method.startswith("!")]:
        raise DatabaseError(
            f"{name}: require_auth names {telling[0]!r}: expected {_SCRAM}, which never sends the password "
            f"(store.database)"
        )
    certificate = Path(settings.get("sslcert") or environment.get("PGSSLCERT") or "~/.postgresql/postgresql.crt")
    proves_itself = f"{_SCRAM},none" if certificate.expanduser().exists() else _SCRAM
    return {"sslmode": mode, "require_auth": asked or proves_itself}


def _is_local(settings: Mapping[str, str], environment: Mapping[str, str]) -> bool:
    """Whether all servers that may answer are on this machine; what a service file says is not known."""
    if settings.get("service") or environment.get("PGSERVICE"):
        return False
    hosts = settings.get("host") or environment.get("PGHOST") or ""
    addresses = settings.get("hostaddr") or environment.get("PGHOSTADDR") or ""
    return all(_is_loopback(place) for place in [*hosts.split(","), *addresses.split(",")])


def _is_loopback(host: str) -> bool:
    """True of loopback addresses, sockets of the file system and their default."""
    if not host or host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
