"""The tenants of a deployment: their keys, limits, budgets and bills, and who is admitted when."""

from serving_bridge.settings import PRIORITIES, VLLM_PRIORITY, Priority
from serving_bridge.tenants.accounts import Accounts, NewKey, checked_month
from serving_bridge.tenants.admission import Ask, Ticket
from serving_bridge.tenants.api_keys import PATTERN, PREFIX, is_well_formed
from serving_bridge.tenants.directory import Directory, check_scopes
from serving_bridge.tenants.errors import (
    BadKey,
    BudgetSpent,
    DeadlinePassed,
    NotAllowed,
    QueueFull,
    RateLimited,
    Refusal,
    Shed,
    TenantError,
    TooLarge,
    Unavailable,
)
from serving_bridge.tenants.fair_queue import QueueBounds
from serving_bridge.tenants.money import ANY_MODEL, Price, read_money, read_price, show_money
from serving_bridge.tenants.records import (
    LIMITS,
    Caller,
    KeyInfo,
    Limits,
    MeterRow,
    Scopes,
    Tenant,
    Usage,
)
from serving_bridge.tenants.schema import TENANTS
from serving_bridge.tenants.secret import SECRET_FILE, DeploymentSecret
from serving_bridge.tenants.shedding import THRESHOLDS, Pressure, Threshold
from serving_bridge.tenants.slices import SlicePolicy
from serving_bridge.tenants.tenants import Tenants, TenantsPolicy

__all__ = [
    "ANY_MODEL",
    "LIMITS",
    "PATTERN",
    "PREFIX",
    "PRIORITIES",
    "SECRET_FILE",
    "TENANTS",
    "THRESHOLDS",
    "VLLM_PRIORITY",
    "Accounts",
    "Ask",
    "BadKey",
    "BudgetSpent",
    "Caller",
    "DeadlinePassed",
    "DeploymentSecret",
    "Directory",
    "KeyInfo",
    "Limits",
    "MeterRow",
    "NewKey",
    "NotAllowed",
    "Pressure",
    "Price",
    "Priority",
    "QueueBounds",
    "QueueFull",
    "RateLimited",
    "Refusal",
    "Scopes",
    "Shed",
    "SlicePolicy",
    "Tenant",
    "TenantError",
    "Tenants",
    "TenantsPolicy",
    "Threshold",
    "Ticket",
    "TooLarge",
    "Unavailable",
    "Usage",
    "check_scopes",
    "checked_month",
    "is_well_formed",
    "read_money",
    "read_price",
    "show_money",
]
