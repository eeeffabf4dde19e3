"""The settings of the serving side."""

from serving_bridge.settings.extra_args import option_names
from serving_bridge.settings.serving import EvaluationSettings, RolloutSettings, ServingSettings, StoreSettings
from serving_bridge.settings.telemetry import TelemetrySettings

__all__ = [
    "EvaluationSettings",
    "RolloutSettings",
    "ServingSettings",
    "StoreSettings",
    "TelemetrySettings",
    "option_names",
]
