"""Where answers are scored: confined processes that can be killed."""

from rewards.sandbox.answer_guards import GUARDS
from rewards.sandbox.killable_pool import Verified, VerifierError, VerifierPool, VerifierStartError, printable
from rewards.sandbox.plain_json import from_json, to_json
from rewards.sandbox.scorer_audit import refusal
from rewards.sandbox.user_code import call_runner, read_score, refused_hint, user_pool

__all__ = [
    "GUARDS",
    "Verified",
    "VerifierError",
    "VerifierPool",
    "VerifierStartError",
    "call_runner",
    "from_json",
    "printable",
    "read_score",
    "refusal",
    "refused_hint",
    "to_json",
    "user_pool",
]
