"""Scores a file of answers with a run's reward or with a verifier. Needs no GPU and no model.

python -m tools.score --config C --answers F.jsonl --out G.jsonl
python -m tools.score --verifier math --answers F.jsonl --out G.jsonl
python -m tools.score --verifier code --answers - --out -      (standard input and output; the tables go to stderr)

A line in is {"row": {...}, "answer": "..."}; "label" (true or false, in the line or its row) says whether the answer is
right. A line out has score, verdict, parts, reasons and seconds. Lines out have the order of the lines in; a blank line
has none. A line that can't be read, and an answer that nobody could judge, have a line with "score": null.

Exit status: 0 when the file was scored to its end; 2 for arguments that make no sense; 3 with --strict if a line has no
score; 78 if the reward, the file or the output can't be used.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from configs.load import load_config
from rewards.code.sandbox import TIERS
from rewards.verifiers import VERIFIER
from tools.assembly import clear_errors, config_arguments
from tools.command_line import command_parser
from tools.reporting import SafeConsole, terminal
from tools.scoring import (
    Processes,
    Source,
    Summary,
    opened_input,
    opened_output,
    print_summary,
    read_lines,
    scored_lines,
)

_UNJUDGED = 3
_INTERRUPTED = 130
_MAX_PROCESSES = 1024
_VERIFIER_DEADLINE_S = 10.0


def main() -> None:
    parser = _parser()
    with clear_errors():
        arguments = parser.parse_args()
        summary = Summary()
        begin = time.perf_counter()
        try:
            _score(arguments, _source(parser, arguments), summary)
        except KeyboardInterrupt:
            raise SystemExit(_INTERRUPTED) from None
        except BrokenPipeError:  # a reader of --out - that has seen enough, such as head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        _tell(arguments, summary, time.perf_counter() - begin)
    if arguments.strict and summary.num_judged < summary.num_lines:
        raise SystemExit(_UNJUDGED)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("score", __doc__)
    config_arguments(parser, required=False)
    known = ", ".join(VERIFIER.names())
    parser.add_argument("--verifier", metavar="NAME", help=f"instead of --config: {known}, or package.module:name")
    parser.add_argument("--answers", required=True, metavar="FILE", help='JSON lines; "-" is standard input')
    parser.add_argument("--out", default="", metavar="FILE", help='scored lines; "-" is standard output')
    parser.add_argument("--processes", type=_count, metavar="N", help="that judge at a time; one for each CPU if unset")
    parser.add_argument("--timeout", type=_seconds, metavar="S", help="for one answer; task.score_timeout_s, or 10")
    parser.add_argument(
        "--sandbox", choices=TIERS, help="of --verifier code: what holds the answers; with --config, set task.sandbox"
    )
    parser.add_argument("--strict", action="store_true", help="exit status 3 if a line has no score")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _source(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Source:
    if (arguments.config is None) == (arguments.verifier is None):
        parser.error("expected one of --config and --verifier")
    if arguments.config is None:
        if arguments.overrides:
            parser.error("--set needs --config")
        return Source(
            verifier=arguments.verifier,
            deadline_s=arguments.timeout or _VERIFIER_DEADLINE_S,
            sandbox=arguments.sandbox or TIERS[0],
        )
    if arguments.sandbox:
        parser.error("--sandbox needs --verifier code; with --config, use --set task.sandbox=NAME")
    config = load_config(arguments.config, arguments.overrides)
    deadline_s = arguments.timeout or config.task.score_timeout_s
    return Source(task=config.task, seed=config.run.seed, deadline_s=deadline_s)


def _score(arguments: argparse.Namespace, source: Source, summary: Summary) -> None:
    count = arguments.processes or len(os.sched_getaffinity(0))
    with (
        opened_input(arguments.answers) as answers,
        opened_output(arguments.out, answers=arguments.answers) as out,
        Processes(source, count) as processes,
        _progress(answers) as step,
    ):
        for scored in scored_lines(read_lines(answers, name=arguments.answers), processes):
            if out is not None:
                out.write(scored.output + b"\n")
            summary.add(scored)
            step()


def _tell(arguments: argparse.Namespace, summary: Summary, wall_s: float) -> None:
    to_stderr = arguments.out == "-"
    if arguments.json:
        print(json.dumps(summary.as_fields(), indent=1), file=sys.stderr if to_stderr else sys.stdout)
    else:
        print_summary(summary, terminal.console(stderr=to_stderr), wall_s=wall_s)


@contextmanager
def _progress(answers: BinaryIO) -> Iterator[Callable[[], None]]:
    """A count of answers on a terminal."""
    console = SafeConsole(stderr=True)
    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda: bar.advance(task)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 4 or not 1 <= int(text) <= _MAX_PROCESSES:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {_MAX_PROCESSES}, got {text[:50]!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 3600, got {text[:50]!r}")
    return value


if __name__ == "__main__":
    main()
