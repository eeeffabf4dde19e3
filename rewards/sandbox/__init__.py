"""Where answers are scored: confined processes that can be killed."""

from rewards.sandbox.answer_guards import GUARDS
from rewards.sandbox.killable_pool import Verified, VerifierError, VerifierPool, VerifierStartError, printable
from rewards.sandbox.scorer_audit import refusal

__all__ = ["GUARDS", "Verified", "VerifierError", "VerifierPool", "VerifierStartError", "printable", "refusal"]
