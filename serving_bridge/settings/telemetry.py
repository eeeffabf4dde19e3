"""Settings of what a run shows of itself while it goes on."""

from __future__ import annotations

from pydantic import Field

from learner_jax.contracts import Settings


class PortSettings(Settings):
    """Ports of /metrics by role; the number at the end of a process's name is added, so worker-2 has the third one."""

    learner: int = Field(0, ge=0, le=65535, description="port of the learner, of host 0 where it has several; 0: any")
    rollout: int = Field(0, ge=0, le=65535, description="port of the rollout worker with number 0; 0: any free one")
    fleet: int = Field(0, ge=0, le=65535, description="port of the serving fleet; 0: any free one")
    gateway: int = Field(0, ge=0, le=65535, description="port of the gateway's worker with number 0; 0: any free one")
    train: int = Field(0, ge=0, le=65535, description="port of the process that starts the others; 0: any free one")


class TelemetrySettings(Settings):
    """What Prometheus can read: each process writes its address to telemetry/ in the run's directory."""

    metrics: bool = Field(True, description="serve /metrics in every process")
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen at; anybody who reaches it may read the run's figures, but no text",
    )
    port: PortSettings = PortSettings()
    traces: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of groups whose way from prompt to version is traced by OpenTelemetry (pip install "
        "'weir[otel]'), sent to OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    version_label: bool = Field(
        False, description="also label vLLM's own series with the version: new series for every version, for short runs"
    )
