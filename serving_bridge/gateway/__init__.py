"""The door for users: OpenAI's API over the serving replicas, with every answer's policy version."""

from serving_bridge.gateway.arms import STABLE, Arms
from serving_bridge.gateway.callers import Admission, Ask, Caller, Guards, NoGuards, OneTenant, Ticket
from serving_bridge.gateway.errors import GatewayError
from serving_bridge.gateway.guarding import GuardedGateway
from serving_bridge.gateway.process import Gateway, ListenError, TenantsError, listener
from serving_bridge.gateway.schema import openapi
from serving_bridge.gateway.tenant_admission import TenantAdmission

__all__ = [
    "STABLE",
    "Admission",
    "Arms",
    "Ask",
    "Caller",
    "Gateway",
    "GatewayError",
    "GuardedGateway",
    "Guards",
    "ListenError",
    "NoGuards",
    "OneTenant",
    "TenantAdmission",
    "TenantsError",
    "Ticket",
    "listener",
    "openapi",
]
