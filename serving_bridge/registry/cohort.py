"""Which tenants a canary may answer, where it is not to answer everybody."""

from __future__ import annotations

from dataclasses import dataclass

from serving_bridge.routing import point_of


@dataclass(frozen=True)
class Cohort:
    """Tenants that were named, and a shard of all others.

    Attributes:
      tenants: by name.
      share: of all tenants, 0 to 1, by the hash of their names. When it grows, tenants only come in.
      salt: of that hash.
    """

    tenants: frozenset[str] = frozenset()
    share: float = 0.0
    salt: str = ""

    def has(self, tenant: str) -> bool:
        return tenant in self.tenants or point_of(f"{self.salt}\0tenant\0{tenant}") < self.share
