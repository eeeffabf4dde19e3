"""Where a registry keeps weights and files: in its folder, or in the object storage that its index names."""

from __future__ import annotations

from learner_jax.contracts import quoted
from serving_bridge.database import Database, Session
from serving_bridge.registry.errors import RegistryError, RegistryIntegrityError
from serving_bridge.storage import unshared, url_problem


def storage_of(database: Database) -> str:
    """URL of the object storage that weights and files are in; "" where they are in the registry's folder.

    Raises:
      RegistryIntegrityError: the row holds none.
    """
    return database.read(_read)


def use_storage(database: Database, url: str) -> None:
    """Has weights and files of all namespaces in object storage from the first entry on.

    Raises:
      RegistryError: there are entries already, whose weights are elsewhere; or the URL names no such place.
    """
    if problem := url_problem(url) or unshared(url):
        raise RegistryError(problem)

    def work(session: Session) -> None:
        if (used := _read(session)) == url:
            return
        if used or session.execute("SELECT 1 FROM entries LIMIT 1"):
            raise RegistryError(
                f"this registry keeps weights and files in {used or 'its folder'}, and can't use {url}: register into "
                f"a new registry"
            )
        session.execute("INSERT INTO registry_storage VALUES (1, ?) ON CONFLICT (one) DO NOTHING", (url,))

    database.write(work)


def _read(session: Session) -> str:
    found = session.execute("SELECT url FROM registry_storage")
    if not found:
        return ""
    url = found[0][0]
    if len(found) > 1 or not isinstance(url, str) or url_problem(url) or unshared(url):
        raise RegistryIntegrityError(
            f"the registry's storage is {quoted(url, 200)} in {len(found)} rows, expected one URL of object storage: "
            f"the row of registry_storage was changed"
        )
    return url
