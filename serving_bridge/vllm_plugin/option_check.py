"""Asks vLLM itself whether it would start with a command line; run as a program by `serving_bridge.vllm.option_check`.

Nothing is loaded but the model's config: no weights, no device.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import NoReturn

from serving_bridge.vllm_plugin import OPTION_VERDICT
from serving_bridge.vllm_plugin.command_line import cli_args


class RefusedError(Exception):
    """vLLM's parser does not take the command line; the text is its own."""


def refusal(arguments: list[str]) -> str:
    """What vLLM says against the arguments of its server; empty if it takes them."""
    try:
        _engine_config(_parsed(arguments))
    except Exception as error:  # noqa: BLE001  (vLLM raises all kinds; what it says is passed on)
        return str(error) or type(error).__name__
    return ""


def _parsed(arguments: list[str]) -> argparse.Namespace:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise RefusedError(message)

    parsed: argparse.Namespace = cli_args().make_arg_parser(Parser(allow_abbrev=False)).parse_args(arguments)
    if getattr(parsed, "model_tag", None) is not None:  # the second value of an option that takes one
        raise RefusedError(f"unrecognized arguments: {parsed.model_tag}")
    cli_args().validate_parsed_serve_args(parsed)
    return parsed


def _engine_config(parsed: argparse.Namespace) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    AsyncEngineArgs.from_cli_args(parsed).create_engine_config(UsageContext.OPENAI_API_SERVER)


def main() -> None:
    print(f"\n{OPTION_VERDICT}{json.dumps(refusal(sys.argv[1:]))}", flush=True)


if __name__ == "__main__":
    main()
