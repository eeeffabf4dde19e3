"""The door for users: OpenAI's API over the serving replicas, with every answer's policy version."""

from serving_bridge.gateway.arms import CANARY, FORMER, STABLE, Arms, Split, split_of
from serving_bridge.gateway.callers import Admission, Ask, Caller, Guards, NoGuards, OneTenant, Ticket
from serving_bridge.gateway.errors import GatewayError
from serving_bridge.gateway.guarding import GuardedGateway
from serving_bridge.gateway.observations import NoObservations, Observation, Observations
from serving_bridge.gateway.process import Fallback, Gateway, ListenError, TenantsError, listener
from serving_bridge.gateway.replicas import Load, Replicas
from serving_bridge.gateway.schema import openapi
from serving_bridge.gateway.tenant_admission import TenantAdmission

__all__ = [
    "CANARY",
    "FORMER",
    "STABLE",
    "Admission",
    "Arms",
    "Ask",
    "Caller",
    "Fallback",
    "Gateway",
    "GatewayError",
    "GuardedGateway",
    "Guards",
    "ListenError",
    "Load",
    "NoGuards",
    "NoObservations",
    "Observation",
    "Observations",
    "OneTenant",
    "Replicas",
    "Split",
    "TenantAdmission",
    "TenantsError",
    "Ticket",
    "listener",
    "openapi",
    "split_of",
]
