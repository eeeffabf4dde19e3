"""Verifiers whose work can't be bounded from inside: each answer is judged in a confined process that can be killed."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from rewards.contracts import RewardResult, failed, scored
from rewards.sandbox import VerifierError, VerifierPool, from_json, printable, to_json
from rewards.verifiers.verifier import Row, RowError


class Pooled:
    """Implements `rewards.verifiers.Verifier` by a module's `judge(answer, row)`, called in the processes.

    Args:
      module: name of the module.
      check: raises `RowError` for a row that can't be judged; called here, before an answer is handed on.
      deadline_s: longest time for one answer.
      num_workers: number of processes.
    """

    def __init__(self, module: str, check: Callable[[Row], None], *, deadline_s: float, num_workers: int) -> None:
        self._check = check
        self._pool = VerifierPool(
            "rewards.verifiers.pooled", {"module": module}, num_workers=num_workers, deadline_s=deadline_s
        )

    def judge(self, answer: str, row: Row) -> RewardResult:
        if why := self.refusal(row):
            return failed(why, "refused")
        try:
            columns = to_json(row)
            key = hashlib.blake2b(json.dumps(columns, sort_keys=True).encode(), digest_size=8).hexdigest()
            verified = self._pool.call({"answer": answer, "row": columns}, key=key)
            score = verified.judged_score
        except VerifierError as error:
            return failed(str(error), error.failure)
        except (TypeError, ValueError, RecursionError) as error:
            return failed(f"the row can't be handed to the processes that judge: {error}", "refused")
        reasons = tuple(map(printable, verified.reasons))
        return scored(score, verified.parts, reasons=reasons, finding=verified.finding)

    def refusal(self, row: Row) -> str:
        try:
            self._check(row)
        except RowError as error:
            return str(error)
        return ""

    def close(self) -> None:
        self._pool.close()


def create(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The side in the processes: from `{"answer": text, "row": columns}` to fields of `rewards.sandbox.Verified`.

    A module's `prepare()`, if it has one, is called once: each answer is judged in a fork of what it loaded.
    """
    module = importlib.import_module(settings["module"])
    judge = module.judge
    getattr(module, "prepare", lambda: None)()

    def score(request: Mapping[str, Any]) -> dict[str, Any]:
        result: RewardResult = judge(request["answer"], from_json(request["row"]))
        if result.score is None:
            return {"error": "; ".join(result.reasons)}
        reasons = [printable(reason)[:1000] for reason in result.reasons]
        return {"score": result.score, "parts": dict(result.parts), "reasons": reasons, "finding": result.finding}

    return score
