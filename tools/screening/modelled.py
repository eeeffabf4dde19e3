"""How well a guard model does on prompts with answers, alone and beside the rules."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from learner_jax.runtime import WeirError
from serving_bridge.guard_models import ServedGuard
from serving_bridge.safety import Checker, Stage, Verdict
from tools.screening.measuring import Share, labelled_prompts

_AT_A_TIME = 16


async def measured_with(folder: Path, checker: Checker, guard: ServedGuard) -> list[Share]:
    """Shares of every set by the rules, by the model, and by either; errors of the model are counted beside.

    Raises:
      WeirError: the folder has no such sets, or the guard can't be reached.
    """
    found: list[Share] = []
    async with guard.running():
        for name, texts in labelled_prompts(folder):
            rules = [checker.check(text, Stage.PROMPT).verdict is Verdict.BLOCK for text in texts]
            verdicts = await _verdicts(guard, texts)
            model = [verdict is Verdict.BLOCK for verdict in verdicts]
            both = [a or b for a, b in zip(rules, model, strict=True)]
            for who, said in (("rules", rules), ("model", model), ("rules or model", both)):
                found.append(Share(f"{name}: {who}", sum(said), len(said)))
            if errors := sum(verdict is Verdict.ERROR for verdict in verdicts):
                found.append(Share(f"{name}: the model gave no verdict", errors, len(texts)))
    if not found:
        raise WeirError(f"expected safety_prompts/ or xstest/ in {str(folder)[:300]!a}")
    return found


async def _verdicts(guard: ServedGuard, texts: Sequence[str]) -> list[Verdict]:
    found: list[Verdict] = []
    for first in range(0, len(texts), _AT_A_TIME):
        part = texts[first : first + _AT_A_TIME]
        asked = (guard.judge([{"role": "user", "content": text}], Stage.PROMPT) for text in part)
        try:
            async with asyncio.timeout(600):
                found += [opinion.verdict for opinion in await asyncio.gather(*asked)]
        except (OSError, TimeoutError) as error:
            raise WeirError(f"the guard model gives no answer: {type(error).__name__}") from None
    return found
