"""Lets users talk to the model of a run, over OpenAI's API.

    python -m tools.gateway --config runs/demo/config.toml

Answers come from the run's replicas (`python -m tools.serve`), or with gateway.follow = "aliases" from those that serve
what the registry's aliases name. [gateway] in the configuration says where it listens. SIGTERM or Ctrl-C lets answers
in flight finish, at most gateway.drain_timeout_s; a second one ends everything at once.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

import uvloop

from configs.schema import Config
from learner_jax.runtime import Waits, WeirError, printable
from serving_bridge.canary import Observer
from serving_bridge.database import open_database
from serving_bridge.feedback import FEEDBACK, FEEDBACK_NOTICES, FeedbackStore
from serving_bridge.gateway import Gateway, GuardedGateway, Split, TenantAdmission, listener, split_of
from serving_bridge.guard_models import served_guards
from serving_bridge.metrics import Exporter
from serving_bridge.notices import Messenger
from serving_bridge.processes import Supervisor, python_module
from serving_bridge.recordings import Recorder, Redaction
from serving_bridge.registry import Registry
from serving_bridge.routing import KEYS_FOLDER
from serving_bridge.safety import AuditLog, Checker, Guards
from serving_bridge.settings import FeedbackSettings, GatewaySettings
from serving_bridge.tenants import DeploymentSecret, Tenants
from serving_bridge.text import Tokenizer, load_tokenizer
from tools.assembly import (
    SESSIONS,
    RunPaths,
    StopRequest,
    base_model_dir,
    build_arm_replicas,
    build_keys,
    build_registry,
    build_serving_registry,
    clear_errors,
    collect_garbage_less_often,
    config_arguments,
    fallback_of,
    metrics_log,
    opened_recordings,
    read_arguments,
    watched,
    working,
)
from tools.canary_place import observing
from tools.command_line import command_parser

_ADMIN_HOST = "127.0.0.1"
#: folder in the run's directory: what this host's processes bill, until the database has it
_SPOOL = "spool"
#: folder in the run's directory: what the guards decided, a log for each process
_AUDIT = "audit"
#: shortest key of messages
_MIN_KEY = 16
_RESTARTS = 20
_POLL_S = 0.2
#: beyond gateway.drain_timeout_s, for a process to end
_END_S = 10.0


class NotReadyError(OSError):
    """What /ready answers with 503."""


class WebhookKeyError(WeirError, ValueError):
    """There is no key to sign messages with."""

    can_heal = False


def main() -> None:
    parser = command_parser("gateway", __doc__)
    config_arguments(parser)
    parser.add_argument("--worker", type=int, default=None, metavar="N", help=argparse.SUPPRESS)
    with clear_errors():
        arguments, config, paths = read_arguments(parser, joins=True)
        stop = StopRequest().install()
        if arguments.worker is None and config.gateway.workers > 1:
            _supervise(config, paths, arguments, stop)
        else:
            _serve(config, paths, arguments.worker or 0, stop)


def _serve(config: Config, paths: RunPaths, number: int, stop: StopRequest) -> None:
    """One process of the gateway."""
    settings, name = config.gateway, f"gateway-{number}"
    tokenizer = load_tokenizer(base_model_dir(config, paths))
    tokenizer.check_chat()
    log = watched(metrics_log(config, paths, "gateway"), config, paths, "gateway", name).write
    admission = None
    if settings.require_keys:
        secret = DeploymentSecret.in_folder(paths.registry / KEYS_FOLDER, make=True)
        admission = TenantAdmission(Tenants(paths.database, secret, paths.directory / _SPOOL))
    with (
        working(paths, name),
        _guards(config, paths, name) as guards,
        _aliases(config) as registry,
        _recorded(config, paths, tokenizer) as (recorder, feedback),
        fallback_of(config, paths, name) as fallback,
        _observer(config) as observer,
    ):
        replicas = build_registry(paths) if registry is None else build_arm_replicas(config, registry)
        gateway = Gateway(
            settings,
            tokenizer,
            replicas,
            build_keys(config, paths, replicas),
            name=name,
            max_context=config.serving.max_model_len,
            log=log,
            should_stop=stop,
            admission=admission,
            guards=guards,
            fallback=fallback,
            read_split=None if registry is None else _split_reader(registry, config.registry.namespace),
            recorder=recorder,
            observations=observer,
            feedback=feedback,
        )
        _listen(gateway, settings, name, number, log)


@contextmanager
def _guards(config: Config, paths: RunPaths, name: str) -> Iterator[GuardedGateway | None]:
    """The guards of [safety] with an audit log of this process; None where they are switched off."""
    if not config.safety.enabled:
        yield None
        return
    audit = AuditLog(paths.directory / _AUDIT, name)
    try:
        yield GuardedGateway(Guards(config.safety, models=served_guards(config.safety), audit=audit))
    finally:
        audit.close()


def _aliases(config: Config) -> AbstractContextManager[Registry | None]:
    """The registry whose aliases are followed; None where the newest version is."""
    return closing(build_serving_registry(config)) if config.gateway.follow == "aliases" else nullcontext()


def _split_reader(registry: Registry, namespace: str) -> Callable[[], Split]:
    return lambda: split_of(registry.placement(namespace))


def _observer(config: Config) -> AbstractContextManager[Observer | None]:
    """What takes note of answers for `tools.canary`; None where no aliases are followed."""
    where = config.registry
    return (
        observing(where.path, where.database, where.namespace) if config.gateway.follow == "aliases" else nullcontext()
    )


@contextmanager
def _recorded(
    config: Config, paths: RunPaths, tokenizer: Tokenizer
) -> Iterator[tuple[Recorder | None, FeedbackStore | None]]:
    """What keeps the conversations of those who consent, and feedback; None where sessions.record is off."""
    settings = config.sessions
    if not settings.record:
        yield None, None
        return
    timeout_s = config.store.database_timeout_s
    with opened_recordings(paths.database, timeout_s=timeout_s, config=config) as (database, store):
        checker = Checker(config.safety) if settings.redact else None
        recorder = Recorder(settings, tokenizer, store, paths.directory / SESSIONS, Redaction(checker))
        with _told_of_feedback(config.feedback, paths.database, timeout_s):
            yield recorder, FeedbackStore(database, config.feedback, checker=checker)


@contextmanager
def _told_of_feedback(settings: FeedbackSettings, url: str, timeout_s: float) -> Iterator[None]:
    """Sends messages to feedback.webhooks, from a thread of its own.

    Raises:
      WebhookKeyError: there is no key to sign them with.
    """
    if not settings.webhooks:
        yield
        return
    key = os.environ.get(settings.webhook_secret_env, "")
    if len(key) < _MIN_KEY:
        raise WebhookKeyError(
            f"feedback.webhook_secret_env names {settings.webhook_secret_env}, which holds no key of {_MIN_KEY} "
            "characters or more"
        )
    database = open_database(url, timeout_s=timeout_s, schema=FEEDBACK, erases=True)
    messenger = Messenger(database, key.encode(), table=FEEDBACK_NOTICES, keeps=False)
    messenger.start()
    try:
        yield
    finally:
        messenger.close()


def _listen(gateway: Gateway, settings: GatewaySettings, name: str, number: int, log: Callable[..., None]) -> None:
    def ready() -> bytes:
        if not gateway.ready:
            raise NotReadyError
        return b"ready\n"

    pages = {"/health": lambda: b"alive\n", "/ready": ready}
    port = settings.admin_port + number if settings.admin_port else 0
    collect_garbage_less_often()
    with (
        listener(settings.host, settings.port, shared=settings.workers > 1) as bound,
        Exporter(_ADMIN_HOST, port, pages, setting="gateway.admin_port") as admin,
    ):
        bound.listen()  # before it is said: whoever reads it may connect at once, and waits until the process accepts
        where = f"http://{settings.host}:{bound.getsockname()[1]}/v1"
        health = f"http://{_ADMIN_HOST}:{admin.port}/ready"
        print(printable(f"{name} listens at {where}; whether it is ready: {health}"), flush=True)
        log("gateway_started", name=name, port=bound.getsockname()[1], admin_port=admin.port)
        try:
            uvloop.run(gateway.run(bound))
        except KeyboardInterrupt:
            raise SystemExit(130) from None


def _supervise(config: Config, paths: RunPaths, arguments: argparse.Namespace, stop: StopRequest) -> None:
    """Starts the processes that share the port, and starts those again that end."""
    settings, log = config.gateway, metrics_log(config, paths, "gateway").write
    grace_s = settings.drain_timeout_s + _END_S
    with listener(settings.host, settings.port, shared=True) as bound:  # holds the port, and takes no connection
        port = bound.getsockname()[1]
        with Supervisor(paths.logs, log, waits=Waits(), also=_variables(config)) as supervisor:
            for number in range(settings.workers):
                command = _worker_command(arguments, port, number)
                supervisor.start(f"gateway-{number}", command, restarts=_RESTARTS, grace_s=grace_s)
            print(printable(f"{settings.workers} workers listen at http://{settings.host}:{port}/v1"), flush=True)
            while not stop():
                supervisor.check()
                time.sleep(_POLL_S)


def _variables(config: Config) -> list[str]:
    """Names of environment variables that workers need, beside the usual ones: keys of messages, too."""
    keys = (config.fallback.webhook_secret_env, config.feedback.webhook_secret_env)
    return [*config.serving.environment, *filter(None, keys)]


def _worker_command(arguments: argparse.Namespace, port: int, number: int) -> list[str]:
    options = ["--config", str(Path(arguments.config))]
    for override in (*arguments.overrides, f"gateway.port={port}"):
        options += ["--set", override]
    return [*python_module("tools.gateway"), *options, "--worker", str(number)]


if __name__ == "__main__":
    main()
