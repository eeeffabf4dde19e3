"""Where answers are scored: confined processes that can be killed."""

from rewards.sandbox.answer_guards import GUARDS
from rewards.sandbox.killable_pool import VerifierError, VerifierPool, printable
from rewards.sandbox.scorer_audit import refusal

__all__ = ["GUARDS", "VerifierError", "VerifierPool", "printable", "refusal"]
