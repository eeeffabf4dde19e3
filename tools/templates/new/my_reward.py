"""The reward of this run; config.toml names the function as "my_reward:exact"."""

from __future__ import annotations


def exact(prompt: str, answer: str, row: dict[str, object]) -> float:
    """1 for the right number and 0 for anything else; `row` is the line of problems.jsonl."""
    return float(answer.strip() == row["answer"])
