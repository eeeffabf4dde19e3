"""The configuration of a run whose tiny model is served: by a fleet, beside a gateway, or for a gate."""

from __future__ import annotations

from pathlib import Path

_TEXT = """
[run]
name = "{name}"
directory = "{run}"
[model]
path = "{model}"
[task]
provider = "reasoning_gym"
name = "basic_arithmetic"
[learner]
steps = 1
groups_per_step = 1
sequence_length = 256
microbatch_rows = 1
{learner}
[rollout]
max_prompt_tokens = 40
max_tokens = 200
[serving]
max_model_len = 256
{serving}
{more}"""


def served_config(name: str, run: Path, model: Path, *, learner: str = "", serving: str = "", more: str = "") -> str:
    """config.toml of a run; `learner` and `serving` are further lines of these tables, `more` further tables."""
    return _TEXT.format(name=name, run=run, model=model, learner=learner, serving=serving, more=more)
