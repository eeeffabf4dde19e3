"""Judges texts with Weir's guards, without a run. Needs no GPU and no model.

python -m tools.safety check --file F.jsonl --out G.jsonl
python -m tools.safety check --file - --out -         (standard input and output)
python -m tools.safety measure --data DIR             (recall, false refusals and redaction on public sets in DIR)
python -m tools.safety verify FOLDER                  (the audit logs of a folder: nothing edited, moved or cut)

A line in is {"text": "...", "stage": "prompt"}; the stage is prompt, answer or training_data. A line out has verdict
(allow, flag, block or error), categories, spans ([start, end, kind, category, guard] in characters of the text) and
redacted, the text with placeholders such as <EMAIL_1>. Lines out have the order of the lines in; a blank line has none.

Exit status: 0 when the file was judged to its end, or every log is as it was written; 1 if a log is not; 2 for
arguments that make no sense; 78 if a file can't be used.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from learner_jax.runtime import printable
from serving_bridge.safety import Checker, verify
from serving_bridge.settings import SafetySettings
from tools.assembly import clear_errors
from tools.command_line import command_parser
from tools.scoring import opened_input, opened_output, read_lines
from tools.screening import checked_lines, measured

_INTERRUPTED = 130


def main() -> None:
    parser = _parser()
    with clear_errors():
        arguments = parser.parse_args()
        try:
            arguments.run(arguments)
        except KeyboardInterrupt:
            raise SystemExit(_INTERRUPTED) from None
        except BrokenPipeError:  # a reader of --out - that has seen enough, such as head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("safety", __doc__)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser("check", help="judge the texts of a file")
    check.add_argument("--file", required=True, metavar="FILE", help='JSON lines; "-" is standard input')
    check.add_argument("--out", required=True, metavar="FILE", help='decisions; "-" is standard output')
    check.set_defaults(run=_check)
    proof = actions.add_parser("verify", help="prove that audit logs are as they were written")
    proof.add_argument("folder", metavar="FOLDER", help="with the audit logs")
    proof.set_defaults(run=_verify)
    measure = actions.add_parser("measure", help="measure the guards on data with answers")
    measure.add_argument("--data", required=True, metavar="DIR", help="with safety_prompts/, xstest/, pii_presidio/")
    measure.set_defaults(run=_measure)
    return parser


def _measure(arguments: argparse.Namespace) -> None:
    print("| measured | share | 95% interval | cases |\n|---|---|---|---|")
    for share in measured(Path(arguments.data), Checker(SafetySettings())):
        low, high = share.interval
        rate = share.count / share.total if share.total else 0.0
        print(f"| {share.name} | {rate:.1%} | {low:.1%} to {high:.1%} | {share.total} |")


def _verify(arguments: argparse.Namespace) -> None:
    found = verify(Path(arguments.folder))
    for name, chain in found.items():
        print(f"{printable(name)}: {chain.number} lines, {printable(chain.problem) or 'as they were written'}")
    if any(chain.problem for chain in found.values()):
        raise SystemExit(1)


def _check(arguments: argparse.Namespace) -> None:
    checker = Checker(SafetySettings())
    with (
        opened_input(arguments.file, option="--file") as texts,
        opened_output(arguments.out, answers=arguments.file) as out,
    ):
        assert out is not None
        for fields in checked_lines(read_lines(texts, name=arguments.file, option="--file"), checker):
            out.write(json.dumps(fields).encode() + b"\n")


if __name__ == "__main__":
    main()
