"""Settings of the gateway: where users reach the model, and what one request may take."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from learner_jax.contracts import Settings


class GatewaySettings(Settings):
    """The door for users (`tools.gateway`): OpenAI's API over the run's replicas."""

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen at; nothing is encrypted: others than loopback need a proxy with TLS",
    )
    port: int = Field(8080, ge=0, le=65535, description="port of the API, which all workers share; 0: any")
    admin_port: int = Field(
        0, ge=0, le=65535, description="port of /health and /ready on loopback, of worker 0; worker N adds N; 0: any"
    )
    workers: int = Field(1, ge=1, le=256, description="processes that share the port")
    model: str = Field("policy", pattern=r"^[A-Za-z0-9._:/-]{1,100}$", description="name of the model in the API")
    require_keys: bool = Field(
        False, description="answer only who has a key (tools.tenants); without it the gateway stays on loopback"
    )
    max_tokens: int = Field(
        4096,
        ge=1,
        description="longest answer, in tokens; also the bound where a request names none",
    )
    max_body_bytes: int = Field(4 << 20, ge=1024, description="largest body of a request, in bytes")
    max_connections: int = Field(4096, ge=1, description="open connections of each worker; further ones are closed")
    timeout_s: float = Field(
        600.0,
        gt=0,
        description="seconds that a request may take, to its last byte; a request may ask for less",
    )
    stall_timeout_s: float = Field(
        60.0, gt=0, description="seconds that a replica may be silent; before the first token another one is asked"
    )
    retries: int = Field(2, ge=0, le=10, description="further replicas that are asked before the first token")
    follow: Literal["newest", "aliases"] = Field(
        "newest",
        description="ask the replicas of the run, or those of registry.path whose versions its aliases name",
    )
    max_shadows: int = Field(4, ge=0, description="copies for the canary that a worker has on replicas at a time")
    drain_timeout_s: float = Field(30.0, ge=0, description="seconds that answers in flight get after SIGTERM")
