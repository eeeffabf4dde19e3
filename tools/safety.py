"""Judges texts with Weir's guards, without a run. Needs no GPU and no model.

python -m tools.safety check --file F.jsonl --out G.jsonl
python -m tools.safety check --file - --out -         (standard input and output)
python -m tools.safety measure --data DIR             (recall, false refusals and redaction on public sets in DIR)
python -m tools.safety train --data DIR --out guard.safetensors       (a small guard, on the even rows of these sets)
python -m tools.safety serve --guard guard.safetensors --port 8090    (behind OpenAI's API, as a Qwen3Guard answers)
python -m tools.safety measure --data DIR --url http://127.0.0.1:8090/v1 --model weir-guard --format qwen3guard
python -m tools.safety verify FOLDER                  (the audit logs of a folder: nothing edited, moved or cut)

A line in is {"text": "...", "stage": "prompt"}; the stage is prompt, answer or training_data. A line out has verdict
(allow, flag, block or error), categories, spans ([start, end, kind, category, guard] in characters of the text) and
redacted, the text with placeholders such as <EMAIL_1>. Lines out have the order of the lines in; a blank line has none.

Exit status: 0 when the file was judged to its end, or every log is as it was written; 1 if a log is not; 2 for
arguments that make no sense; 78 if a file can't be used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from aiohttp import web

from learner_jax.runtime import WeirError, printable
from serving_bridge.guard_models import FORMATS, Classifier, ServedGuard
from serving_bridge.safety import Checker, verify
from serving_bridge.settings import GuardModelSettings, SafetySettings
from tools.assembly import clear_errors
from tools.command_line import command_parser
from tools.scoring import opened_input, opened_output, read_lines
from tools.screening import MODEL, Share, checked_lines, guard_application, measured, measured_with, trained

_TIMEOUT_S = 60.0

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
    measure.add_argument("--url", default="", help="of a guard model, up to /v1: it is measured beside the rules")
    measure.add_argument("--model", default=MODEL, help=f"its name there ({MODEL})")
    measure.add_argument("--format", choices=sorted(FORMATS), default="qwen3guard", help="how it is asked (qwen3guard)")
    measure.add_argument("--api-key-env", default="", metavar="NAME", help="environment variable with its key")
    measure.set_defaults(run=_measure)
    train = actions.add_parser("train", help="train a small guard")
    train.add_argument("--data", required=True, metavar="DIR", help="with safety_prompts/ and xstest/; their even rows")
    train.add_argument("--out", required=True, metavar="FILE", help="the guard, as safetensors")
    train.set_defaults(run=_train)
    serve = actions.add_parser("serve", help="serve a small guard over OpenAI's API, on loopback")
    serve.add_argument("--guard", required=True, metavar="FILE", help="that `train` wrote")
    serve.add_argument("--port", type=int, default=8090, help="on 127.0.0.1 (8090); 0: any")
    serve.set_defaults(run=_serve)
    return parser


def _train(arguments: argparse.Namespace) -> None:
    found = trained(Path(arguments.data))
    _print_table("cross-validated", found.shares)
    print(f"penalty {found.penalty:g}, threshold {found.classifier.threshold:.3f}")
    try:
        found.classifier.write(Path(arguments.out))
    except OSError as error:
        raise WeirError(f"--out {printable(arguments.out)[:300]} can't be written: {error.strerror or error}") from None


def _serve(arguments: argparse.Namespace) -> None:
    app = guard_application(Classifier.read(Path(arguments.guard)))
    web.run_app(app, host="127.0.0.1", port=arguments.port, access_log=None, print=lambda text: print(text, flush=True))


def _measure(arguments: argparse.Namespace) -> None:
    checker, folder = Checker(SafetySettings()), Path(arguments.data)
    if arguments.url:
        shares = asyncio.run(measured_with(folder, checker, _guard(arguments)))
    else:
        shares = measured(folder, checker)
    _print_table("measured", shares)


def _print_table(title: str, shares: Iterable[Share]) -> None:
    print(f"| {title} | share | 95% interval | cases |\n|---|---|---|---|")
    for share in shares:
        low, high = share.interval
        rate = share.count / share.total if share.total else 0.0
        print(f"| {share.name} | {rate:.1%} | {low:.1%} to {high:.1%} | {share.total} |")


def _guard(arguments: argparse.Namespace) -> ServedGuard:
    try:
        settings = GuardModelSettings(
            name="measured", format=arguments.format, url=arguments.url, model=arguments.model
        )
    except ValueError as error:
        raise WeirError(
            f"--url {printable(arguments.url)[:200]} is no address: expected http://host:port/v1"
        ) from error
    key = os.environ.get(arguments.api_key_env, "") if arguments.api_key_env else ""
    return ServedGuard(settings, key=key, timeout_s=_TIMEOUT_S)


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
