"""Guards of what users and models write: findings, verdicts, redaction."""

from serving_bridge.safety.audit import AuditError, AuditLog, Chain, verify
from serving_bridge.safety.checking import Checker, is_closed, local_guards
from serving_bridge.safety.contents import Message, Messages, call_text, content_of
from serving_bridge.safety.decisions import REDACTED, Decision, Kind, Opinion, Span, Stage, Verdict
from serving_bridge.safety.guards import Guards, ModelGuard
from serving_bridge.safety.harm import HarmRules
from serving_bridge.safety.injections import Injections
from serving_bridge.safety.local import LocalGuard
from serving_bridge.safety.personal_data import PersonalData, Redactor
from serving_bridge.safety.streams import Released, StreamGuard
from serving_bridge.safety.training import GuardsForTraining, RulesForTraining, TrainingGuard

__all__ = [
    "REDACTED",
    "AuditError",
    "AuditLog",
    "Chain",
    "Checker",
    "Decision",
    "Guards",
    "GuardsForTraining",
    "HarmRules",
    "Injections",
    "Kind",
    "LocalGuard",
    "Message",
    "Messages",
    "ModelGuard",
    "Opinion",
    "PersonalData",
    "Redactor",
    "Released",
    "RulesForTraining",
    "Span",
    "Stage",
    "StreamGuard",
    "TrainingGuard",
    "Verdict",
    "call_text",
    "content_of",
    "is_closed",
    "local_guards",
    "verify",
]
