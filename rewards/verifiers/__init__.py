"""Verifiers by name: each judges an answer by the columns of a row, without a task, a run or a model."""

from rewards.verifiers.verifier import VERIFIER, Judge, Plain, Row, RowError, Verifier, create_verifier

__all__ = ["VERIFIER", "Judge", "Plain", "Row", "RowError", "Verifier", "create_verifier"]
