"""Settings of the registry: where fleets and gateways that follow its aliases find it."""

from __future__ import annotations

from pydantic import Field, model_validator

from learner_jax.contracts import Settings
from serving_bridge.database import secret_in_url


class RegistrySettings(Settings):
    """The registry of what may be served (`tools.registry`)."""

    path: str = Field("", description="folder of the registry, which every serving host sees under this path")
    database: str = Field(
        "", description="of its index: an SQLite file, or postgresql://user@host/database; empty for one in path"
    )
    namespace: str = Field(
        "default", pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="whose entries, aliases and traffic split"
    )

    trusted_key: str = Field(
        "",
        description="PEM file of public keys, one of which must have signed an entry before it is served, promoted or "
        "evaluated (tools.registry sign; needs 'weir[signing]'); empty: signatures are not demanded",
    )

    @model_validator(mode="after")
    def _no_secrets(self) -> RegistrySettings:
        if problem := secret_in_url(self.database):
            raise ValueError(problem.replace("store.database", "registry.database"))
        return self
