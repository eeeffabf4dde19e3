"""What may be served: candidates with their lineage, aliases such as `stable`, and the history of both."""

from serving_bridge.registry.card import model_card
from serving_bridge.registry.cohort import Cohort
from serving_bridge.registry.entry import (
    ENTRY_SCHEMA,
    STAGES,
    Candidate,
    DataWindow,
    Entry,
    Origin,
    RegisteredFile,
    digest,
    encode_entry,
)
from serving_bridge.registry.errors import NotHolderError, RegistryError, RegistryIntegrityError
from serving_bridge.registry.index import RegistryIndex
from serving_bridge.registry.kept_files import model_files, tokenizer_sha256
from serving_bridge.registry.leases import RegistryLease
from serving_bridge.registry.registry import Registry, Retention
from serving_bridge.registry.rows import Event, Move, Standing
from serving_bridge.registry.schema import REGISTRY
from serving_bridge.registry.signatures import (
    PASSWORD_VARIABLE,
    SIGNATURE_NAME,
    TrustedKeys,
    check_private_key,
    read_trusted_keys,
    sign_folder,
    verify_folder,
)
from serving_bridge.registry.traffic import (
    CANARY,
    MAX_TENANT,
    STABLE,
    Placed,
    Placement,
    TrafficChange,
    TrafficRecord,
    TrafficSplit,
    cohort_of,
)

__all__ = [
    "CANARY",
    "ENTRY_SCHEMA",
    "MAX_TENANT",
    "PASSWORD_VARIABLE",
    "REGISTRY",
    "SIGNATURE_NAME",
    "STABLE",
    "STAGES",
    "Candidate",
    "Cohort",
    "DataWindow",
    "Entry",
    "Event",
    "Move",
    "NotHolderError",
    "Origin",
    "Placed",
    "Placement",
    "RegisteredFile",
    "Registry",
    "RegistryError",
    "RegistryIndex",
    "RegistryIntegrityError",
    "RegistryLease",
    "Retention",
    "Standing",
    "TrafficChange",
    "TrafficRecord",
    "TrafficSplit",
    "TrustedKeys",
    "check_private_key",
    "cohort_of",
    "digest",
    "encode_entry",
    "model_card",
    "model_files",
    "read_trusted_keys",
    "sign_folder",
    "tokenizer_sha256",
    "verify_folder",
]
