"""The live view of a run: what `metrics.jsonl` says, as a picture in a terminal or as plain lines elsewhere.

    python -m tools.view runs/demo
    python -m tools.view runs/demo runs/other --web     (a page for browsers, at http://127.0.0.1:8790/)
    python -m tools.view registry --web --namespace acme            (the page of a registry's rollouts)
    python -m tools.view registry --web --database URL              (its index is in PostgreSQL)

attaches to a run that is going on (on this machine or through a shared file system) or shows one that has ended.
The page overlays several runs. docs/view.md says who can reach it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from pathlib import Path

from configs.load import load_past_config
from serving_bridge.telemetry import MetricsTail
from tools.assembly import clear_errors, saved_config
from tools.canary_place import INDEX_FILE, opened_canary
from tools.command_line import command_parser, index_arguments
from tools.dashboard import DashboardError, read_token
from tools.reporting import LiveView

_ATTACH_TICK_S = 0.5


def attach(directory: Path, *, tick_s: float = _ATTACH_TICK_S) -> None:
    """Follows a run directory until the run has ended; Ctrl-C leaves the run alone."""
    config = load_past_config(saved_config(directory))
    tail = MetricsTail(directory / "metrics.jsonl")
    with LiveView(config, directory) as view:
        while True:
            records = tail.read()
            view.update(records)
            if view.is_over:
                return
            time.sleep(tick_s)


def serve_page(arguments: argparse.Namespace) -> None:
    """Serves the page until it is stopped.

    Raises:
      DashboardError: it can't be served as asked.
    """
    from tools.dashboard import serve  # a web server, which the view in a terminal does without

    folders = arguments.run_directory
    if registries := folders if arguments.database is not None else [one for one in folders if is_registry(one)]:
        if len(folders) > 1:
            raise DashboardError(f"{registries[0]} is a registry, which has a page of its own: name it alone")
        serve_rollouts(registries[0], arguments, port=serve.PORT if arguments.port is None else arguments.port)
        return
    if arguments.namespace != "default":
        raise DashboardError(
            f"--namespace is for the page of a registry, and {folders[0]} has no {INDEX_FILE}: name a registry's "
            f"folder, with --database where its index is elsewhere"
        )
    serve.serve(
        folders,
        host=arguments.host or serve.HOST,
        port=serve.PORT if arguments.port is None else arguments.port,
        token=read_token(arguments.token_env, arguments.token_file),
        more_hosts=arguments.allow_host,
        say=lambda text: print(text, flush=True),
    )


def is_registry(folder: Path) -> bool:
    """Whether it is a registry's folder with its index in it, and not a run's."""
    return (folder / INDEX_FILE).is_file() and not (folder / "config.toml").exists()


def serve_rollouts(root: Path, arguments: argparse.Namespace, *, port: int) -> None:
    """Serves the page of a registry's rollouts until it is stopped, as `tools.canary page` does."""
    from tools.rollout_page import serve

    if (root / "config.toml").exists():
        raise DashboardError(f"--database is for the page of a registry, and {root} is the folder of a run")
    with opened_canary(root, arguments.database, None, trusted_key=arguments.trusted_key) as opened:
        serve.serve(
            opened.place(arguments.namespace),
            lambda: f"page ({os.getpid()}, {os.urandom(4).hex()})",
            opened.log,
            host=arguments.host or "127.0.0.1",
            port=port,
            token=read_token(arguments.token_env, arguments.token_file),
            more_hosts=arguments.allow_host,
            say=lambda text: print(text, flush=True),
        )


def _other(namespace: str) -> str | None:
    return None if namespace == "default" else namespace


def main() -> None:
    parser = command_parser("view", __doc__)
    parser.add_argument("run_directory", type=Path, nargs="+")
    parser.add_argument("--web", action="store_true", help="serve the view as a page for browsers")
    page = parser.add_argument_group("the page")
    page.add_argument("--port", type=int, metavar="N", help="default 8790; 0 takes any free one")
    page.add_argument("--host", metavar="H", help="address to listen at; another than loopback needs a token")
    token = page.add_mutually_exclusive_group()
    token.add_argument("--token-env", metavar="NAME", help="environment variable with the token that readers must have")
    token.add_argument("--token-file", type=Path, metavar="FILE", help="file with that token, of mode 600")
    page.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="further host name that it is reached by"
    )
    index_arguments(parser.add_argument_group("the page of a registry"))
    arguments = parser.parse_args()
    with clear_errors(), contextlib.suppress(KeyboardInterrupt):
        if arguments.web:
            serve_page(arguments)
            return
        given = {"--port": arguments.port, "--host": arguments.host, "--token-env": arguments.token_env}
        given |= {"--token-file": arguments.token_file, "--allow-host": arguments.allow_host or None}
        given |= {"--database": arguments.database, "--namespace": _other(arguments.namespace)}
        if extra := [name for name, value in given.items() if value is not None]:
            raise DashboardError(f"{extra[0]} is for the page: give --web with it")
        if len(arguments.run_directory) > 1:
            raise DashboardError("a terminal shows one run at a time: give one directory, or --web for a page of all")
        attach(arguments.run_directory[0])


if __name__ == "__main__":
    main()
