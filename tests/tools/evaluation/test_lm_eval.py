"""lm-evaluation-harness, a program of its own, against a replica of Weir: what it reports is what was made sure of.

It needs PyTorch of its own, so it belongs into an environment of its own, whose program WEIR_LM_EVAL or PATH names.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving_bridge.fleet import Replica
from tests.support.evaluation_programs import Ask, evaluated, reported

_PROGRAM = os.environ.get("WEIR_LM_EVAL") or shutil.which("lm_eval")
_BEGINS = (
    "Once upon a time",
    "Lily and Tom",
    "The little dog",
    "One day, a big",
    "Sue was",
    "There was a red",
    "In a",
    "A cat",
)
_TOKENS = 12

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        _PROGRAM is None, reason="lm_eval is not there: pip install 'lm_eval[api]' transformers, WEIR_LM_EVAL"
    ),
]


def task(folder: Path, name: str, **fields: Any) -> None:
    """A task file that lm-eval finds by `--include_path`; nothing of it is fetched."""
    common = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "target_delimiter": "",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | fields))


def write_tasks(folder: Path, answers: list[str]) -> None:
    """Every fourth reference is wrong; of two choices the model's own greedy answer is the right one."""
    wrong = answers[1:] + answers[:1]
    assert not any(own == other for own, other in zip(answers, wrong, strict=True))
    rows = [
        {"prompt": begin, "answer": other if number % 4 == 0 else own, "choices": [own, other]}
        for number, (begin, own, other) in enumerate(zip(_BEGINS, answers, wrong, strict=True))
    ]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    task(
        folder,
        "begin_generate",
        output_type="generate_until",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n\n\n"], "max_gen_toks": _TOKENS, "do_sample": False, "temperature": 0.0},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    task(
        folder,
        "begin_choose",
        output_type="multiple_choice",
        doc_to_choice="{{choices}}",
        doc_to_target=0,
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )


def lm_eval(folder: Path, url: str, token: str, tokenizer: Path) -> dict[str, Any]:
    """What the program reports of both tasks."""
    about = f"model=policy,base_url={url}/v1/completions,tokenizer={tokenizer}"
    about += ",add_bos_token=True,num_concurrent=4,max_retries=1"  # Llama's tokenizer begins each text with a token
    command = [str(_PROGRAM), "run", "--model", "local-completions", "--model_args", about]
    command += ["--include_path", str(folder), "--tasks", "begin_generate", "begin_choose"]
    command += ["--output_path", str(folder / "out")]
    return reported(command, folder, token)


async def answers(ask: Ask) -> list[str]:
    told = await ask({"max_tokens": _TOKENS, "prompt": list(_BEGINS)})
    return [choice["text"] for choice in told["choices"]]


def test_generated_answers_and_log_likelihoods_are_those_of_the_replica(stories_model: Path, tmp_path: Path) -> None:
    def run(own: list[str], replica: Replica) -> dict[str, Any]:
        write_tasks(tmp_path, own)
        return lm_eval(tmp_path, replica.base_url, replica.client.token, stories_model)

    found = evaluated(stories_model, tmp_path, "/v1/completions", answers, run)
    assert found["begin_generate"]["exact_match,none"] == 0.75
    assert found["begin_choose"]["acc,none"] == 1.0
