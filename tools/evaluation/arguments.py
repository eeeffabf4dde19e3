"""The command line of an evaluation of suites."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from configs.load import load_config
from serving_bridge.storage import is_url
from tools.evaluation.contamination import WORDS, Training
from tools.evaluation.endpoint import EndpointSettings, RefusedError, base_url
from tools.evaluation.session import Plan
from tools.evaluation.sources import Source
from tools.evaluation.suites import shipped_suites

_LARGEST = 100_000


def add_suite_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what an evaluation of suites takes beside --config, --set and --model."""
    suites = parser.add_argument_group("suites")
    suites.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="FILE",
        help=f"TOML file of a suite, or one that comes with Weir: {shipped_suites()}; may be given several times",
    )
    suites.add_argument("--out", type=Path, metavar="DIR", help="folder of the results; the same one goes on")
    suites.add_argument(
        "--concurrency", type=_count, default=64, metavar="N", help="answers in work at a time (default 64)"
    )
    add_training_arguments(suites)
    weights = parser.add_argument_group("weights, which a vLLM server of its own is started on")
    weights.add_argument(
        "--checkpoint", type=model_place, metavar="DIR", help="Orbax checkpoint, or a folder or URL: its newest"
    )
    weights.add_argument(
        "--weights",
        type=model_place,
        metavar="PLACE",
        help="weight store of a run: a folder such as runs/demo/weights, or a URL",
    )
    weights.add_argument("--version", type=_count, metavar="N", help="version of --weights; the newest by default")
    weights.add_argument(
        "--base", type=_folder, metavar="DIR", help="folder with config.json and tokenizer, where the source has none"
    )
    weights.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the served weights; config.json's if unset"
    )
    weights.add_argument(
        "--max-model-len", type=_count, metavar="N", help="longest prompt and answer; what the suites need if unset"
    )
    weights.add_argument("--family", default="", metavar="NAME", help="model.family, where it is none of Weir's")
    endpoint = parser.add_argument_group("an endpoint with OpenAI's API")
    endpoint.add_argument("--endpoint", metavar="URL", help="base address, e.g. http://localhost:8000/v1")
    endpoint.add_argument("--endpoint-model", metavar="NAME", help="name of the model there")
    endpoint.add_argument("--endpoint-api", choices=("chat", "completions"), default="chat", help="default chat")
    endpoint.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the key")
    endpoint.add_argument(
        "--limit-field",
        choices=("max_tokens", "max_completion_tokens"),
        default="max_tokens",
        help="of a request, that bounds its answer (default max_tokens)",
    )
    endpoint.add_argument("--tries", type=_count, default=6, metavar="N", help="of each request (default 6)")
    endpoint.add_argument("--timeout", type=_seconds, default=600.0, metavar="S", help="of each try (default 600)")
    endpoint.add_argument(
        "--requests-per-minute", type=_seconds, default=0.0, metavar="N", help="most requests, tries included"
    )


def add_training_arguments(parser: argparse._ActionsContainer, *, required: bool = False) -> None:
    """Adds where training prompts come from that suites may overlap with."""
    parser.add_argument(
        "--contamination",
        required=required,
        metavar="SOURCE",
        help="training prompts to look for in the suites: a JSONL file, or the configuration of a run, for its task's",
    )
    parser.add_argument(
        "--contamination-column", default="question", metavar="NAME", help="of a JSONL file (default question)"
    )
    parser.add_argument(
        "--contamination-words",
        type=_count,
        default=WORDS,
        metavar="N",
        help=f"in a row that overlap (default {WORDS})",
    )


def training_of(arguments: argparse.Namespace) -> Training:
    """The training prompts that the command line names."""
    return Training(arguments.contamination, column=arguments.contamination_column, ngram=arguments.contamination_words)


def plan_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Plan:
    """What the command line asks for; ends with its usage where options don't go together.

    Raises:
      RefusedError: the endpoint's address or key can't be used.
      ConfigError: --config can't be.
    """
    given = [name for name in ("model", "checkpoint", "weights", "endpoint") if getattr(arguments, name) is not None]
    if len(given) != 1:
        parser.error(
            "expected one of --model, --checkpoint, --weights and --endpoint" + (f", got {given}" if given else "")
        )
    if arguments.out is None:
        parser.error("--suite needs --out, the folder of the results")
    if arguments.version is not None and given != ["weights"]:
        parser.error("--version is for --weights")
    if arguments.overrides and arguments.config is None:
        parser.error("--set needs --config")
    config = load_config(arguments.config, arguments.overrides) if arguments.config is not None else None
    return Plan(
        suites=arguments.suite,
        source=_endpoint(parser, arguments) if given == ["endpoint"] else _source(arguments, given[0]),
        out=arguments.out,
        serving=config.serving if config is not None else None,
        concurrency=arguments.concurrency,
        max_model_len=arguments.max_model_len,
        training=training_of(arguments) if arguments.contamination is not None else None,
    )


def _folder(text: str) -> Path:
    if is_url(text):
        raise argparse.ArgumentTypeError(f"expected a folder of this machine, got {text[:200]!a}")
    return Path(text)


def model_place(text: str) -> str | Path:
    """A folder, or the URL of one in object storage."""
    return text if is_url(text) else Path(text)


def _source(arguments: argparse.Namespace, kind: str) -> Source:
    return Source(
        kind="folder" if kind == "model" else "checkpoint" if kind == "checkpoint" else "weights",
        path=getattr(arguments, kind),
        version=arguments.version,
        base=arguments.base,
        dtype=arguments.dtype,
        family=arguments.family,
    )


def _endpoint(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> EndpointSettings:
    if not arguments.endpoint_model:
        parser.error("--endpoint needs --endpoint-model, the name of the model there")
    base_url(arguments.endpoint)
    key = ""
    if arguments.api_key_env:
        key = os.environ.get(arguments.api_key_env, "").strip()
        if not key:
            raise RefusedError(f"--api-key-env: the environment variable {arguments.api_key_env} is not set, or empty")
        if not key.isascii() or not key.isprintable():
            raise RefusedError(f"--api-key-env: {arguments.api_key_env} holds characters that no header can carry")
    return EndpointSettings(
        url=arguments.endpoint,
        model=arguments.endpoint_model,
        api=arguments.endpoint_api,
        key=key,
        key_name=arguments.api_key_env or "",
        limit_field=arguments.limit_field,
        timeout_s=arguments.timeout,
        tries=arguments.tries,
        requests_per_minute=arguments.requests_per_minute,
    )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= _LARGEST * 100 or len(text) > 9:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text[:50]!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < _LARGEST * 10:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text[:50]!r}")
    return value
