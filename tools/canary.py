"""Rollouts: brings a candidate to all users in small steps that undo themselves.

python -m tools.canary run registry                                    (the controller; one at a time is at work)
python -m tools.canary start registry 7 --policy P --reason "..."      (begin with the first step: shadow, 1%, ...)
python -m tools.canary status registry                                 (the step, what it waits for, what is known)
python -m tools.canary dry-run registry 7 --policy P                   (what start would do; without 7: the next look)
python -m tools.canary pause registry                                  (nothing goes on; guardrails still stop)
python -m tools.canary resume registry
python -m tools.canary abort registry                                  (all traffic back to stable)
python -m tools.canary rollback registry --reason "..."                (stable becomes the entry before it)
python -m tools.canary release registry [--anew]                       (training may go on after a rollback)
python -m tools.canary history registry [--rollout 3]                  (rollouts, or the decisions of one)
python -m tools.canary replay registry 3                               (compute every decision again)
python -m tools.canary observe registry --file F.jsonl                 (scores and feedback from a file)
python -m tools.canary feedback registry --run runs/demo                (reactions of users, as they come)
python -m tools.canary page registry --token-env NAME                  (a page with buttons, http://127.0.0.1:8791/)
python -m tools.canary policy                                          (the default policy, as a file to begin with)
python -m tools.canary power --metric refusal --baseline 0.03 --effect 0.05 --per-day 20000   (samples, days)
python -m tools.canary compare --file F.jsonl                          (a difference with CUPED and strata)
python -m tools.canary estimate --file F.jsonl                         (a candidate's value by another's logs)

Without --policy the default policy is taken. docs/canary.md has the metrics, steps and rules.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from serving_bridge.canary import CanaryPolicy, Controller, Service, load_policy, note_newest, replay
from serving_bridge.notices import Messenger
from serving_bridge.registry import NotHolderError
from tools.assembly import StopRequest, clear_errors
from tools.canary_feedback import add_feedback_command, follow_feedback
from tools.canary_inputs import add_observations
from tools.canary_metrics import add_metrics_arguments, served
from tools.canary_offline import add_offline_commands, compare, estimate, power
from tools.canary_place import CanaryPlace, opened_canary, webhook_secret
from tools.canary_shown import print_decisions, print_dry_run, print_plan, print_policy, print_rollouts, print_status
from tools.command_line import command_parser, registry_arguments
from tools.dashboard import read_token
from tools.reporting import terminal

_DAY_S = 86_400.0


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    console = terminal.console()
    with clear_errors():
        if arguments.command in _OFFLINE:
            _OFFLINE[arguments.command](arguments, console)
            return
        with opened_canary(
            arguments.registry, arguments.database, arguments.observations, trusted_key=arguments.trusted_key
        ) as opened:
            status = _COMMANDS[arguments.command](opened, arguments, console)
    if status:
        sys.exit(status)


def run(opened: CanaryPlace, arguments: argparse.Namespace, console: Console) -> int:
    stop = StopRequest().install()
    place = opened.place(arguments.namespace)
    controller = Controller(place, holder=_holder(arguments), take_over=arguments.take_over)
    nap = threading.Event()
    with served(arguments.registry, arguments) as metrics:

        def log(event: str, **fields: object) -> None:
            metrics.event(event, **fields)
            _say(console, event, fields)

        service = Service(
            place,
            controller,
            arguments.registry,
            monotonic=time.monotonic,
            purge=lambda: opened.log.purge(time.time() - arguments.keep_days * _DAY_S),
            log=log,
            standing=metrics.standing,
        )
        messenger = Messenger(opened.another(), webhook_secret(arguments.registry))
        messenger.start()
        try:
            while not stop():
                service.turn()
                if arguments.once and place.rollouts.open_one(arguments.namespace) is None:
                    break
                nap.wait(service.pause_s)
        finally:
            controller.release()
            messenger.close()
    return 0


def start(opened: CanaryPlace, arguments: argparse.Namespace, console: Console) -> int:
    place = opened.place(arguments.namespace)
    number = place.index.aliases.resolve(arguments.namespace, arguments.entry)
    policy = _policy(arguments)
    controller = Controller(place, holder=_holder(arguments), take_over=arguments.take_over)
    try:
        rollout = controller.start(number, policy, actor=arguments.actor, reason=arguments.reason)
    finally:
        controller.release()
    step = policy.steps[0]
    console.print(
        f"rollout {rollout.rollout}: entry {number} against {rollout.stable}, step {step.name}; `run` brings it on",
        soft_wrap=True,
    )
    return 0


def status(opened: CanaryPlace, arguments: argparse.Namespace, console: Console) -> int:
    print_status(opened.place(arguments.namespace), console, as_json=arguments.json)
    return 0


def dry_run(opened: CanaryPlace, arguments: argparse.Namespace, console: Console) -> int:
    place = opened.place(arguments.namespace)
    if arguments.entry is None:
        print_dry_run(place, console)
        return 0
    number = place.index.aliases.resolve(arguments.namespace, arguments.entry)
    return print_plan(place, number, _policy(arguments), console)


def ask(opened: CanaryPlace, arguments: argparse.Namespace, console: Console) -> int:
    """pause, resume, abort: the controller that is at work does it; without one it is done here."""
    place = opened.place(arguments.namespace)
    rollout = place.rollouts.ask(arguments.namespace, arguments.command)
    controller = Controller(place, holder=_holder(arguments))
    try:
        controller.obey()
        console.print(f"rollout {rollout.rollout}: {arguments.command} is done")
    except NotHolderError as error:
        console.print(
            f"rollout {rollout.rollout}: the controller does it within a second or two ({error})", soft_wrap=True
        )
    finally:
        controller.release()
    return 0


def rollback(opened: CanaryPlace, arguments: argparse.Namespace, console: Console) -> int:
    place = opened.place(arguments.namespace)
    controller = Controller(place, holder=_holder(arguments), take_over=arguments.take_over)
    try:
        number = controller.take_back(actor=arguments.actor, reason=arguments.reason)
    finally:
        controller.release()
    console.print(f"stable of {arguments.namespace} is entry {number} again")
    return 0


def release(opened: CanaryPlace, arguments: argparse.Namespace, console: Console) -> int:
    place = opened.place(arguments.namespace)
    rollout = place.rollouts.release(arguments.namespace, anew=arguments.anew)
    note_newest(place, arguments.registry)  # a controller that runs would, too
    anew = f", anew with the weights of entry {rollout.stable}" if arguments.anew else ""
    console.print(f"training of {arguments.namespace} may go on after rollout {rollout.rollout}{anew}")
    return 0


def history(opened: CanaryPlace, arguments: argparse.Namespace, console: Console) -> int:
    place = opened.place(arguments.namespace)
    if arguments.rollout is None:
        print_rollouts(place, console, limit=arguments.limit, as_json=arguments.json)
    else:
        rollout = place.rollouts.one(arguments.namespace, arguments.rollout)
        print_decisions(place, rollout, console, limit=arguments.limit, as_json=arguments.json)
    return 0


def replayed(opened: CanaryPlace, arguments: argparse.Namespace, console: Console) -> int:
    place = opened.place(arguments.namespace)
    rollout = place.rollouts.one(arguments.namespace, arguments.rollout)
    differences = replay(rollout, place.rollouts.decisions(rollout.rollout))
    for difference in differences:
        console.print(f"[red]{difference}[/]", soft_wrap=True)
    if not differences:
        console.print(f"rollout {rollout.rollout}: {rollout.looks} decisions come out as they were stored")
    return 1 if differences else 0


def observe(opened: CanaryPlace, arguments: argparse.Namespace, console: Console) -> int:
    number = add_observations(opened.log, arguments.namespace, arguments.file)
    console.print(f"{number} observations are added")
    return 0


def page(opened: CanaryPlace, arguments: argparse.Namespace, console: Console) -> int:
    from tools.rollout_page import serve  # a web server, which the other commands do without

    serve.serve(
        opened.place(arguments.namespace),
        lambda: _holder(arguments),
        opened.log,
        host=arguments.host,
        port=arguments.port,
        token=read_token(arguments.token_env, arguments.token_file),
        more_hosts=arguments.allow_host,
        say=lambda text: print(text, flush=True),
    )
    return 0


_COMMANDS: Mapping[str, Callable[[CanaryPlace, argparse.Namespace, Console], int]] = {
    "run": run,
    "start": start,
    "status": status,
    "dry-run": dry_run,
    "pause": ask,
    "resume": ask,
    "abort": ask,
    "rollback": rollback,
    "release": release,
    "history": history,
    "replay": replayed,
    "observe": observe,
    "feedback": follow_feedback,
    "page": page,
}


_OFFLINE: Mapping[str, Callable[[argparse.Namespace, Console], None]] = {
    "policy": lambda arguments, console: print_policy(),
    "power": power,
    "compare": compare,
    "estimate": estimate,
}


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("canary", __doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, *, acts: bool = False, prints: bool = False) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text)
        registry_arguments(one, acts=acts, prints=prints)
        one.add_argument(
            "--observations", help="URL of the observations (default: observations.sqlite in the registry's folder)"
        )
        return one

    one = command("run", "the controller: looks in intervals, and moves what the rules say", acts=True)
    one.add_argument("--once", action="store_true", help="end with the rollout that is under way")
    one.add_argument("--keep-days", type=float, default=14.0, help="how long observations stay (default: 14)")
    one.add_argument("--take-over", action="store_true", help="from a controller that hangs")
    add_metrics_arguments(one)
    one = command("start", "begin a rollout", acts=True)
    one.add_argument("entry", help="number or alias")
    one.add_argument("--policy", type=Path, metavar="FILE")
    one.add_argument("--reason", required=True)
    one.add_argument("--take-over", action="store_true", help="from whoever holds the aliases")
    command("status", "where the rollout stands", prints=True)
    one = command("dry-run", "what would happen, without doing it")
    one.add_argument("entry", nargs="?", help="number or alias of a candidate; without it: the next look")
    one.add_argument("--policy", type=Path, metavar="FILE")
    for name, text in (("pause", "let nothing go on"), ("resume", "let it go on"), ("abort", "take all traffic back")):
        command(name, text, acts=True)
    one = command("rollback", "make the entry before stable again", acts=True)
    one.add_argument("--reason", required=True)
    one.add_argument("--take-over", action="store_true", help="from whoever holds the aliases")
    one = command("release", "let training go on after a rollback")
    one.add_argument("--anew", action="store_true", help="with the weights of the stable entry, not where it stands")
    one = command("history", "rollouts, or the decisions of one", prints=True)
    one.add_argument("--rollout", type=int, metavar="N")
    one.add_argument("--limit", type=int, default=50, help="how many (default: 50)")
    command("replay", "compute every decision of a rollout again").add_argument("rollout", type=int)
    _add_page(command("page", "serve a page of the rollouts; buttons need a token", acts=True))
    command("observe", "add scores and feedback from a file").add_argument(
        "--file", type=Path, required=True, metavar="JSONL"
    )
    add_feedback_command(command("feedback", "bring what users said of a run's answers, until it is stopped"))
    commands.add_parser("policy", help="print the default policy")
    add_offline_commands(commands.add_parser)
    return parser


def _add_page(one: argparse.ArgumentParser) -> None:
    one.add_argument("--port", type=int, default=8791, metavar="N", help="default 8791; 0 takes any free one")
    one.add_argument("--host", default="127.0.0.1", metavar="H", help="another than loopback needs a token")
    token = one.add_mutually_exclusive_group()
    token.add_argument("--token-env", metavar="NAME", help="environment variable with the admin key")
    token.add_argument("--token-file", type=Path, metavar="FILE", help="file with that key, of mode 600")
    one.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="further name of the host")


def _policy(arguments: argparse.Namespace) -> CanaryPolicy:
    return CanaryPolicy() if arguments.policy is None else load_policy(arguments.policy)


def _say(console: Console, event: str, fields: Mapping[str, object]) -> None:
    told = ", ".join(f"{name} {value}" for name, value in fields.items())
    console.print(f"{time.strftime('%H:%M:%S')} {event}: {told}", markup=False, soft_wrap=True)


def _holder(arguments: argparse.Namespace) -> str:
    return f"{arguments.actor} ({os.getpid()}, {os.urandom(4).hex()})"


if __name__ == "__main__":
    main()
