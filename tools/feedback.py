"""Feedback about recorded answers: what came, who gave it, and the training data that is made of it.

python -m tools.feedback RUN                                             (what became of feedback)
python -m tools.feedback RUN list [--limit 50]
python -m tools.feedback RUN add --file F.jsonl --tenant acme            (as POST /v1/feedback takes it, a line each)
python -m tools.feedback RUN signals [--set-aside]                       (raters that flood, collude or flip)
python -m tools.feedback RUN take-back --tenant acme --rater HASH
python -m tools.feedback RUN judge --endpoint http://127.0.0.1:8000/v1 --model NAME
python -m tools.feedback RUN dataset NAME --kind preferences --until 2026-11-30 --out FOLDER
python -m tools.feedback RUN online [--once]                             (trajectories for learner.online.share)
python -m tools.feedback RUN provenance SESSION ...                      (datasets and versions that saw a session)

RUN is a run's directory, or the URL of a database.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.load import load_config
from configs.schema import Config
from learner_jax.contracts import ContractError, quoted
from learner_jax.runtime import WeirError
from serving_bridge.database import Database
from serving_bridge.feedback import (
    DATASET_KINDS,
    OUTCOMES,
    Datasets,
    Feedback,
    FeedbackStore,
    JudgeError,
    NextTurnJudge,
    OnlineFeed,
    OnlineTerms,
    Raters,
    read_feedback,
    turnabouts,
)
from serving_bridge.guard_models import served_guards
from serving_bridge.queue import Pace
from serving_bridge.recordings import RecordingStore
from serving_bridge.safety import Checker, Guards, GuardsForTraining, RulesForTraining, TrainingGuard
from serving_bridge.settings import FeedbackSettings, SafetySettings
from serving_bridge.text import Tokenizer, load_tokenizer
from tools.assembly import (
    StopRequest,
    base_model_dir,
    build_encoder,
    build_online_queue,
    clear_errors,
    record_limits,
    recordings_of,
    run_paths,
    working,
)
from tools.command_line import command_parser, positive
from tools.reporting import terminal

_TIMEOUT_S = 5.0
_AT_ONCE = 500
_EVERY_S, _POLL_S = 10.0, 0.2
_MAX_LINE_BYTES = 1 << 20


class FeedbackFileError(WeirError, ValueError):
    """A file that holds no feedback."""


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    console = terminal.console()
    url = arguments.place
    with clear_errors(), ExitStack() as stack:
        database, sessions = stack.enter_context(recordings_of(url, timeout_s=_TIMEOUT_S))
        settings, safety, tokenizer = _settings(url)
        fingerprint = "" if tokenizer is None else tokenizer.fingerprint
        checker, guard = Checker(safety), stack.enter_context(_training_guard(safety))
        store = FeedbackStore(database, settings, checker=checker)
        match arguments.command:
            case None | "list":
                _print(store, console, listed=arguments.command == "list", limit=arguments.limit)
            case "add":
                _add(store, arguments, settings, console)
            case "signals":
                _signals(Raters(database, settings), console, set_aside=arguments.set_aside)
            case "take-back":
                done = Raters(database, settings).take_back(arguments.tenant, arguments.rater)
                console.print("its feedback counts again" if done else "no such rater was set aside")
            case "judge":
                asyncio.run(_judge(store, sessions, arguments, console))
            case "dataset":
                harmless = None if tokenizer is None else tokenizer.harmless
                made = Datasets(database, sessions, store, guard, tokenizer=fingerprint, harmless=harmless)
                _dataset(made, arguments, console)
            case "online":
                _online(url, database, sessions, store, guard, console, once=arguments.once)
            case "provenance":
                _provenance(database, sessions, store, guard, arguments, console)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("feedback", __doc__)
    parser.add_argument("place", metavar="RUN", help="a run's directory, e.g. runs/demo, or the URL of a database")
    parser.set_defaults(limit=50)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    listing = commands.add_parser("list", help="the newest feedback")
    listing.add_argument("--limit", type=positive, default=50, metavar="N", help="at most so many")
    add = commands.add_parser("add", help="bring the feedback of a file; the same again changes nothing")
    add.add_argument("--file", type=Path, required=True, metavar="F.jsonl", help="lines as POST /v1/feedback has them")
    add.add_argument("--tenant", required=True, metavar="TENANT", help="whose answers it is about; local without keys")
    signals = commands.add_parser("signals", help="numbers of raters, and who is set aside")
    signals.add_argument("--set-aside", action="store_true", help="set those aside whose numbers say so")
    back = commands.add_parser("take-back", help="let a rater's feedback count again")
    back.add_argument("--tenant", required=True, metavar="TENANT", help="the rater's tenant")
    back.add_argument("--rater", required=True, metavar="HASH", help="as signals shows it")
    judge = commands.add_parser("judge", help="judge answers by what the user said next")
    judge.add_argument("--endpoint", required=True, metavar="URL", help="an OpenAI-compatible API, with its /v1")
    judge.add_argument("--model", required=True, metavar="NAME", help="the judge's model")
    judge.add_argument("--votes", type=positive, default=3, metavar="N", help="times that it is asked")
    judge.add_argument("--key-env", default="", metavar="NAME", help="environment variable of the endpoint's key")
    dataset = commands.add_parser("dataset", help="write a dataset, cut by time")
    dataset.add_argument("name", metavar="NAME", help="of the dataset; used once")
    dataset.add_argument("--kind", choices=DATASET_KINDS, required=True, help="what its lines are")
    dataset.add_argument("--until", required=True, metavar="TIME", help="the cut: 2026-11-30, or 2026-11-30T12:00, UTC")
    dataset.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where its folder is made")
    online = commands.add_parser("online", help="put scored answers into the learner's online queue, until stopped")
    online.add_argument("--once", action="store_true", help="put what there is, and end")
    provenance = commands.add_parser("provenance", help="what was made of sessions, withdrawn ones too")
    provenance.add_argument("sessions", nargs="+", metavar="SESSION", help="ids of sessions")
    return parser


def _settings(place: str) -> tuple[FeedbackSettings, SafetySettings, Tokenizer | None]:
    """The run's settings and its tokenizer; defaults where RUN is a URL."""
    config = Path(place) / "config.toml"
    if not config.is_file():
        return FeedbackSettings(), SafetySettings(), None
    loaded = load_config(config, [])
    folder = Path(base_model_dir(loaded, run_paths(loaded)))
    tokenizer = load_tokenizer(folder) if (folder / "tokenizer.json").is_file() else None
    return loaded.feedback, loaded.safety, tokenizer


@contextmanager
def _training_guard(settings: SafetySettings) -> Iterator[TrainingGuard]:
    """What judges training data: the rules, and the guard models of [safety], if there are any."""
    guards = Guards(settings, models=served_guards(settings))
    if not guards.has_models:
        yield RulesForTraining(Checker(settings))
        return
    with GuardsForTraining(guards) as guard:
        yield guard


def _print(store: FeedbackStore, console: Console, *, listed: bool, limit: int) -> None:
    store.settle()
    if not listed:
        counts = store.counts()
        for outcome in OUTCOMES:
            console.print(f"{counts[outcome]:>10,} {outcome}", highlight=False)
        for state, number in store.notices().items():
            if number:
                told = (
                    "messages to webhooks wait" if state == "waiting" else "messages to webhooks were taken by nobody"
                )
                console.print(f"{number:>10,} {told}", highlight=False)
        return
    table = Table("answer", "kind", "value", "outcome", "rater", "text", box=None)
    for one in store.listed(limit):
        value = "" if one.value is None else f"{one.value:g}"
        words = (one.answer_id, one.kind, value, one.outcome, one.rater[:8], quoted(one.text or "", 60))
        table.add_row(*(escape(word) for word in words))
    console.print(table)


def _add(store: FeedbackStore, arguments: argparse.Namespace, settings: FeedbackSettings, console: Console) -> None:
    counted: Counter[str] = Counter()
    pieces = list(_read(arguments.file, settings))  # all lines are looked at before any is stored
    for start in range(0, len(pieces), _AT_ONCE):
        counted.update(store.add(arguments.tenant, pieces[start : start + _AT_ONCE]))
    told = ", ".join(f"{counted[outcome]:,} {outcome}" for outcome in OUTCOMES if counted[outcome])
    console.print(f"{len(pieces):,} pieces of feedback: {told or 'none'}", highlight=False)


def _read(path: Path, settings: FeedbackSettings) -> Iterator[Feedback]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FeedbackFileError(f"{path} can't be read: {error.strerror or error}") from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        if len(line) > _MAX_LINE_BYTES:
            raise FeedbackFileError(f"{path}, line {number}: more than {_MAX_LINE_BYTES} bytes, which is no feedback")
        try:
            yield read_feedback(line, max_text_chars=settings.max_text_chars, max_outcome=settings.max_outcome)
        except ContractError as error:
            raise FeedbackFileError(f"{path}, line {number}: {error}; nothing was stored") from error


def _signals(raters: Raters, console: Console, *, set_aside: bool) -> None:
    if set_aside:
        for one, reason in raters.set_aside(time.time()):
            console.print(f"{escape(one.tenant)} {one.rater} is set aside: {reason}", highlight=False)
    reasons = {(tenant, rater): reason for tenant, rater, reason in raters.aside()}
    table = Table("tenant", "rater", "verdicts", "flood", "collusion p", "flips", "set aside", box=None)
    for one in raters.signals():
        numbers = f"{one.verdicts:,}", f"{one.flood:.1f}", f"{one.collusion_p:.1g}", f"{one.flip_share:.0%}"
        table.add_row(escape(one.tenant), one.rater, *numbers, escape(reasons.get((one.tenant, one.rater), "")))
    console.print(table)


async def _judge(
    store: FeedbackStore, sessions: RecordingStore, arguments: argparse.Namespace, console: Console
) -> None:
    counted: Counter[str] = Counter()
    async with aiohttp.ClientSession() as session:
        key = os.environ.get(arguments.key_env, "") if arguments.key_env else ""
        judge = NextTurnJudge(session, arguments.endpoint, arguments.model, api_key=key, votes=arguments.votes)
        for recorded in sessions.each():
            for turn in turnabouts(recorded):
                if store.has(recorded.row.tenant, judge.feedback_id(turn.answer_id)):
                    counted["judged before"] += 1
                    continue
                try:
                    verdict = await judge.judged(turn)
                except JudgeError:
                    if not counted.keys() - {"judged before"}:
                        raise  # the first that is asked: the endpoint is the wrong one, or away
                    counted["failed"] += 1
                    continue
                counted.update(store.add(recorded.row.tenant, [verdict]))
    told = ", ".join(f"{number:,} {name}" for name, number in sorted(counted.items()))
    console.print(f"{judge.version}: {told or 'no answer was followed by a message'}", highlight=False)


def _dataset(made: Datasets, arguments: argparse.Namespace, console: Console) -> None:
    until_s = _time(arguments.until)
    manifest = made.make(arguments.name, arguments.kind, arguments.out, until_s=until_s)
    for part, about in manifest["files"].items():
        console.print(f"{arguments.out / arguments.name / part}.jsonl: {about['examples']:,} examples", highlight=False)
    for why, number in manifest["left_out"].items():
        console.print(f"left out: {number:,} {why}", highlight=False)


def _time(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise FeedbackFileError(f"--until is {text[:50]!a}, expected a time such as 2026-11-30T12:00") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _online(
    place: str,
    database: Database,
    sessions: RecordingStore,
    store: FeedbackStore,
    guard: TrainingGuard,
    console: Console,
    *,
    once: bool,
) -> None:
    config_file = Path(place) / "config.toml"
    if not config_file.is_file():
        raise FeedbackFileError(f"{place}: expected a run's directory, since trajectories are for its learner")
    config = load_config(config_file, [])
    if not config.learner.online_groups:
        raise FeedbackFileError("learner.online.share is 0: the learner takes no online groups; set it above 0")
    paths = run_paths(config)
    encoder, model = build_encoder(config, base_model_dir(config, paths))
    queue = build_online_queue(config, paths, limits=record_limits(config, encoder, model))
    stop = StopRequest().install()
    try:
        feed = OnlineFeed(database, sessions, store, queue, guard, _terms(config, encoder.tokenizer.fingerprint))
        with working(paths, "online"):
            while True:
                told = ", ".join(f"{number:,} {name}" for name, number in sorted(feed.emit().items()) if number)
                if told or once:
                    console.print(told or "no answers are ready", highlight=False)
                if once or stop():
                    return
                _pause(stop)
    finally:
        queue.close()


def _terms(config: Config, tokenizer: str) -> OnlineTerms:
    learner = config.learner
    return OnlineTerms(
        run=config.run.name,
        tokenizer=tokenizer,
        temperature=config.rollout.temperature,
        wait_s=config.feedback.online_wait_s,
        min_answers=2 if learner.loss.advantage.has_group_baseline else 1,
        max_tokens=learner.sequence_length,
        pace=Pace(learner.online.max_staleness, learner.online_groups, learner.steps),
    )


def _pause(stop: StopRequest) -> None:
    """Waits until feedback may have come, or a stop is asked for."""
    for _ in range(int(_EVERY_S / _POLL_S)):
        if stop():
            return
        time.sleep(_POLL_S)


def _provenance(
    database: Database,
    sessions: RecordingStore,
    store: FeedbackStore,
    guard: TrainingGuard,
    arguments: argparse.Namespace,
    console: Console,
) -> None:
    for name, uses in Datasets(database, sessions, store, guard).uses(arguments.sessions).items():
        versions = ", ".join(f"{version} and later" for version in uses["versions"][:1]) or "none"
        console.print(
            f"{escape(quoted(name, 80))}: datasets {', '.join(uses['datasets']) or 'none'}; policy versions {versions}",
            highlight=False,
        )


if __name__ == "__main__":
    main()
