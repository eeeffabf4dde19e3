"""The settings of the serving side."""

from serving_bridge.settings.engine_args import VLLM_MODULE, command_line, options_of
from serving_bridge.settings.fallback import CASES, POLICIES, Case, FallbackSettings, Policy, TenantFallbackSettings
from serving_bridge.settings.feedback import FeedbackSettings
from serving_bridge.settings.gateway import GatewaySettings
from serving_bridge.settings.priorities import PRIORITIES, SHADOW_PRIORITY, VLLM_PRIORITY, Priority
from serving_bridge.settings.registry import RegistrySettings
from serving_bridge.settings.safety import BLOCKED, GuardModelSettings, SafetySettings, TenantSafetySettings
from serving_bridge.settings.serving import EvaluationSettings, RolloutSettings, ServingSettings, StoreSettings
from serving_bridge.settings.sessions import SessionsSettings
from serving_bridge.settings.telemetry import TelemetrySettings

__all__ = [
    "BLOCKED",
    "CASES",
    "POLICIES",
    "PRIORITIES",
    "SHADOW_PRIORITY",
    "VLLM_MODULE",
    "VLLM_PRIORITY",
    "Case",
    "EvaluationSettings",
    "FallbackSettings",
    "FeedbackSettings",
    "GatewaySettings",
    "GuardModelSettings",
    "Policy",
    "Priority",
    "RegistrySettings",
    "RolloutSettings",
    "SafetySettings",
    "ServingSettings",
    "SessionsSettings",
    "StoreSettings",
    "TelemetrySettings",
    "TenantFallbackSettings",
    "TenantSafetySettings",
    "command_line",
    "options_of",
]
