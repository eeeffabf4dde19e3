"""Evaluates a model on suites of problems, or on the held-out problems of a run.

python -m tools.evaluate --suite FILE --out DIR --model DIR
python -m tools.evaluate --suite FILE --out DIR --checkpoint DIR | --weights PLACE [--version N]
python -m tools.evaluate --suite FILE --out DIR --endpoint URL --endpoint-model NAME [--api-key-env NAME]
python -m tools.evaluate --config runs/demo/config.toml --model runs/demo/final_model   (the run's held-out problems)
python -m tools.evaluate compare A B   (two results: paired tests, flipped problems, least detectable difference)
python -m tools.evaluate report DIR    (writes DIR/report.html)
python -m tools.evaluate contamination --suite FILE --contamination F.jsonl   (problems that training prompts have, too)

A suite is a TOML file; docs/evaluation.md has its keys. Every answer is kept in DIR/answers.jsonl at once: the same
command goes on where it was stopped. DIR/results.json holds the metrics, DIR/scored.jsonl every answer with its score.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from learner_jax.runtime import printable
from tools.assembly import clear_errors, config_arguments, preflight, read_arguments
from tools.command_line import command_parser
from tools.evaluation import (
    Watch,
    add_suite_arguments,
    add_training_arguments,
    compare,
    load_suite,
    model_place,
    open_suite,
    overlap_text,
    overlaps,
    plan_of,
    print_comparison,
    print_results,
    read_results,
    run_plan,
    training_of,
)
from tools.launch import evaluate_folder
from tools.reporting import SafeConsole, terminal

_INTERRUPTED = 130


def main() -> None:
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first in _WITHOUT_MODEL:
        _WITHOUT_MODEL[first]()
        return
    parser = _parser()
    with clear_errors():
        arguments = parser.parse_args()
        if arguments.suite:
            _on_suites(parser, arguments)
        else:
            _on_held_out(parser, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("evaluate", __doc__)
    config_arguments(parser, required=False)
    parser.add_argument(
        "--model", type=model_place, help="Hugging Face folder, e.g. from tools.convert; with --suite also its URL"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, samples included")
    add_suite_arguments(parser)
    return parser


def _on_held_out(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.config is None or arguments.model is None:
        parser.error("expected --suite with --out and a model, or --config with --model for a run's held-out problems")
    if wrong := [f"--{name}" for name in ("out", "checkpoint", "weights", "endpoint") if getattr(arguments, name)]:
        parser.error(f"{wrong[0]} needs --suite")
    if not isinstance(arguments.model, Path):
        parser.error(f"--model {arguments.model} needs --suite: a run's held-out problems take a folder")
    arguments, config, paths = read_arguments(parser)
    preflight("evaluate", config, paths, model_dir=arguments.model)
    result = asyncio.run(evaluate_folder(config, paths, arguments.model))
    if arguments.json:
        print(json.dumps(result.as_fields(), indent=1))
        return
    for sample in result.samples:
        score = f"no verdict: {sample.verdict}" if sample.score is None else f"score {sample.score:g}"
        print(f"{sample.prompt!r} -> {sample.answer!r} (expected {sample.expected!r}, {score})")
    print(f"accuracy {result.accuracy:.1%}, mean score {result.mean_score:.3f} over {result.num_problems} problems")
    for note in result.notes:
        print(f"note: {note}")


def _on_suites(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    plan = plan_of(parser, arguments)
    try:
        with _watch() as watch:
            tree = run_plan(plan, watch)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with {printable(plan.out)}", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None
    if arguments.json:
        print(json.dumps(tree, indent=1))
        return
    print_results(tree, terminal.console())
    print(f"results: {printable(plan.out / 'results.json')}")


def _compare() -> None:
    parser = command_parser("evaluate", "Compares two results of the same suites, problem by problem.")
    parser.add_argument("command", choices=("compare",))
    parser.add_argument("first", metavar="A", type=Path, help="folder of a result, or its results.json")
    parser.add_argument("second", metavar="B", type=Path, help="the other one")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    with clear_errors():
        first, second = read_results(arguments.first), read_results(arguments.second)
        found = compare(first, second)
        if arguments.json:
            terminal.print_json([one.as_fields() for one in found])
        else:
            print_comparison(first, second, found, terminal.console())


def _report() -> None:
    from tools.evaluation import page  # with Matplotlib, which takes half a second

    parser = command_parser("evaluate", "Writes report.html into the folder of a result, and prints its path.")
    parser.add_argument("command", choices=("report",))
    parser.add_argument("result", metavar="DIR", type=Path, help="folder of a result (--out)")
    with clear_errors():
        print(printable(page.write_page(parser.parse_args().result)))


def _contamination() -> None:
    parser = command_parser("evaluate", "Looks for words in a row that a suite shares with training prompts.")
    parser.add_argument("command", choices=("contamination",))
    parser.add_argument("--suite", required=True, help="TOML file of a suite, or one that comes with Weir")
    add_training_arguments(parser, required=True)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a sentence")
    arguments = parser.parse_args()
    with clear_errors(), closing(open_suite(load_suite(arguments.suite))) as suite:
        (found,) = overlaps([suite], training_of(arguments))
        fields = {"name": suite.name, "num_problems": len(suite.problems), "contamination": found.as_fields()}
        if arguments.json:
            terminal.print_json(fields)
        else:
            print(overlap_text(fields))


#: First word -> what it does without a model.
_WITHOUT_MODEL = {"compare": _compare, "report": _report, "contamination": _contamination}


@contextmanager
def _watch() -> Iterator[Watch]:
    """A bar on a terminal; elsewhere only sentences, on stderr."""
    console = SafeConsole(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task("", total=None)

        def say(text: str) -> None:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        def begin(suite: str, total: int) -> None:
            say(f"{suite}: {total} answers")
            bar.reset(task, total=total, description=suite)

        yield Watch(say=say, begin=begin, step=lambda: bar.advance(task))


if __name__ == "__main__":
    main()
