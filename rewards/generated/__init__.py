"""Prompts that a function makes, for runs of chat models without a data set of one's own."""

from rewards.generated.arithmetic_prompts import arithmetic
from rewards.generated.instruction_prompts import instructions

__all__ = ["arithmetic", "instructions"]
