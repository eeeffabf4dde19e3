"""The settings of the serving side."""

from serving_bridge.settings.extra_args import option_names
from serving_bridge.settings.serving import EvaluationSettings, RolloutSettings, ServingSettings, StoreSettings

__all__ = ["EvaluationSettings", "RolloutSettings", "ServingSettings", "StoreSettings", "option_names"]
