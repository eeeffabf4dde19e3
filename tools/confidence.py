"""Fits how probably an answer is right, from its log-probs or from how far several samples agree.

    python -m tools.confidence collect --config C --problems 400 --out answers.jsonl     (asks the run's gateway)
    python -m tools.confidence compare --answers answers.jsonl                           (every score and method)
    python -m tools.confidence fit --answers answers.jsonl --out calibration.json [--score mean] [--method platt]

A line of answers is {"correct": true, "logprobs": [-0.1, ...], "answer": "...", "samples": ["...", ...]}; logprobs or
samples may be missing where the score needs none. "question" names the question where several answers have the same.
Half of the questions is fitted on, the other half measured on. `fallback.calibration` names the file that comes out.

Exit status: 0 when it was done; 78 if a file, a gateway or the answers can't be used.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from configs.load import load_config
from learner_jax.runtime import printable
from rewards.contracts import Task
from serving_bridge.confidence import METHODS, SCORES, write_calibration
from tools.assembly import build_task, clear_errors, config_arguments
from tools.calibrating import Asking, Compared, KnownAnswer, asked_answers, compared, fitted_on, read_known
from tools.command_line import command_parser
from tools.scoring import opened_input, opened_output, read_lines

_OPTION = "--answers"


def main() -> None:
    arguments = _parser().parse_args()
    with clear_errors():
        arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("confidence", __doc__)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    collect = actions.add_parser("collect", help="ask a gateway the held-out problems of a run")
    config_arguments(collect)
    collect.add_argument("--out", required=True, metavar="FILE", help='lines of answers; "-" is standard output')
    collect.add_argument("--problems", type=int, default=400, metavar="N", help="held-out problems (400)")
    collect.add_argument("--samples", type=int, default=0, metavar="N", help="further answers to each, for agreement")
    collect.add_argument("--temperature", type=float, default=1.0, help="as users sample (1.0)")
    collect.add_argument("--max-tokens", type=int, default=None, metavar="N", help="by default rollout.max_tokens")
    collect.add_argument("--url", default="", help="of the gateway, up to /v1; by default that of [gateway]")
    collect.add_argument("--api-key-env", default="", metavar="NAME", help="environment variable with the key")
    collect.set_defaults(run=_collect)
    fit = actions.add_parser("fit", help="fit a calibration")
    fit.add_argument(_OPTION, required=True, metavar="FILE", help='JSON lines; "-" is standard input')
    fit.add_argument("--out", required=True, metavar="FILE", help="calibration")
    fit.add_argument("--score", choices=SCORES, default="mean", help="what it is made of (mean)")
    fit.add_argument("--method", choices=METHODS, default="platt", help="how it is fitted (platt)")
    fit.set_defaults(run=_fit)
    compare = actions.add_parser("compare", help="measure every score and method")
    compare.add_argument(_OPTION, required=True, metavar="FILE", help='JSON lines; "-" is standard input')
    compare.set_defaults(run=_compare)
    return parser


def _collect(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, arguments.overrides)
    asking = Asking(
        url=arguments.url or f"http://{config.gateway.host}:{config.gateway.port}/v1",
        model=config.gateway.model,
        chat=config.task.chat,
        template=config.task.prompt_template,
        key=os.environ.get(arguments.api_key_env, "") if arguments.api_key_env else "",
        samples=arguments.samples,
        temperature=arguments.temperature,
        max_tokens=arguments.max_tokens or config.rollout.max_tokens,
    )
    task = build_task(config)
    try:
        with opened_output(arguments.out, answers="-") as out:
            assert out is not None
            asyncio.run(_written(task, asking, arguments.problems, out))
    finally:
        task.close()


async def _written(task: Task, asking: Asking, count: int, out: BinaryIO) -> None:
    number = right = 0
    async for answer in asked_answers(task, asking, count):
        out.write(msgspec.json.encode(answer) + b"\n")
        number, right = number + 1, right + answer.correct
        if number % 50 == 0:
            print(f"{number} of {count} problems, {right} right", file=sys.stderr)
    print(f"{number} answers, {right} right", file=sys.stderr)


def _fit(arguments: argparse.Namespace) -> None:
    answers = _answers(arguments.answers)
    found = fitted_on(answers, arguments.score, arguments.method)
    print("\n".join(_table([found])))
    print("\n| told from probability | share told | of these right |\n|---|---|---|")
    for level in found.calibration.held_out["thresholds"]:
        accuracy = "-" if level["accuracy"] is None else f"{level['accuracy']:.1%}"
        print(f"| {level['probability']:g} | {level['told']:.1%} | {accuracy} |")
    write_calibration(Path(arguments.out), found.calibration)


def _answers(path: str) -> list[KnownAnswer]:
    with opened_input(path, option=_OPTION) as lines:
        return read_known(read_lines(lines, name=path, option=_OPTION), name=printable(path))


def _compare(arguments: argparse.Namespace) -> None:
    answers = _answers(arguments.answers)
    print("\n".join(_table(compared(answers))))


def _table(found: Iterable[Compared]) -> Iterator[str]:
    yield "| score, method | error before | error after | Brier | area | answers |"
    yield "|---|---|---|---|---|---|"
    for one in found:
        before, after = one.before, one.after
        area = "-" if after.area is None else f"{after.area:.3f}"
        yield (
            f"| {one.calibration.score}, {one.calibration.method} "
            f"| {before.error:.3f} ({before.low:.3f} to {before.high:.3f}) "
            f"| {after.error:.3f} ({after.low:.3f} to {after.high:.3f}) "
            f"| {before.brier:.3f}, {after.brier:.3f} | {area} | {one.calibration.num_fitted} + {after.count} |"
        )


if __name__ == "__main__":
    main()
