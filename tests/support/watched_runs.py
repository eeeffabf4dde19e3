"""Runs for the page of the live view: recorded ones whose events a test appends, and hostile texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.written_runs import CONFIG, step

#: What a model may write to take over a page, a terminal or a reader's eyes.
HOSTILE = (
    "<script>window.owned=1</script><img src=x onerror=window.owned=1>",
    "\x1b]0;owned\x07\x1b[31mred\x9b2J",
    "\u202etxet desrever\u2066\u200b",
    "\ud800 \x00 \ufeff",
    "'\"></pre><svg onload=window.owned=1>",
    "javascript:window.owned=1 {{7*7}} ${window.owned=1}",
    "x" * 200_000,
)


def begun_run(directory: Path, name: str = "by-hand", **settings: Any) -> Path:
    """A run's directory with nothing but its configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    text = CONFIG.replace('name = "by-hand"', f'name = "{name}"')
    for key, value in settings.items():
        text = text.replace(f"{key} = ", f"{key} = {value} # ")
    (directory / "config.toml").write_text(text)
    return directory


def append(directory: Path, *events: dict[str, Any]) -> None:
    """Adds events as they would stand in the run's metrics file."""
    with (directory / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def step_event(number: int, t: float, **fields: Any) -> dict[str, Any]:
    return {"t": t, "process": "learner", "event": "step", **step(number), **fields}


def held_out(number: int, t: float, *texts: str) -> dict[str, Any]:
    """A held-out measurement at a step, with an answer by prompt."""
    samples = [
        {"prompt": f"prompt {i}: {text}", "answer": f"answer {number}: {text}", "expected": text, "score": i % 2,
         "verdict": "pass" if i % 2 else "fail"}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    return {
        "t": t, "process": "rollout", "event": "heldout", "step": number, "version": number + 1, "accuracy": 0.5,
        "mean_score": 0.5, "num_problems": len(texts), "versions": [number + 1, number + 1], "samples": samples,
    }  # fmt: skip


def long_run(directory: Path, steps: int) -> Path:
    """A run of so many steps, with an interval of the workers for every tenth."""
    begun_run(directory)

    def lines() -> Iterator[str]:
        for number in range(1, steps + 1):
            t = 1000 + number
            yield (
                f'{{"t":{t},"process":"learner","event":"step","step":{number},"version":{number},"reward":'
                f'{number / steps},"kl":0.1,"entropy":1.0,"wait_s":0.5,"step_s":1.0,"staleness_max":{number % 3}}}\n'
            )
            if number % 10 == 0:
                yield (
                    f'{{"t":{t},"process":"rollout","event":"interval","tokens":300,"seconds":1.0,"idle_s":0.25,'
                    f'"running":7}}\n'
                )

    with (directory / "metrics.jsonl").open("w") as file:
        file.writelines(lines())
    return directory
