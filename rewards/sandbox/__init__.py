"""Where answers are scored: confined processes that can be killed."""

from rewards.sandbox.agent_function import AGENT
from rewards.sandbox.answer_guards import GUARDS
from rewards.sandbox.confinement import known_calls
from rewards.sandbox.environment_class import ENVIRONMENT
from rewards.sandbox.killable_pool import Verified, VerifierError, VerifierPool, VerifierStartError, printable
from rewards.sandbox.plain_json import from_json, to_json
from rewards.sandbox.reward_function import REWARD
from rewards.sandbox.scorer_audit import refusal
from rewards.sandbox.user_code import read_score, user_pool

__all__ = [
    "AGENT",
    "ENVIRONMENT",
    "GUARDS",
    "REWARD",
    "Verified",
    "VerifierError",
    "VerifierPool",
    "VerifierStartError",
    "from_json",
    "known_calls",
    "printable",
    "read_score",
    "refusal",
    "to_json",
    "user_pool",
]
