"""What `tools.canary` computes without a registry: sample sizes, adjusted differences, and values from logs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table

from learner_jax.contracts import quoted
from serving_bridge.canary import (
    CanaryError,
    CanaryPolicy,
    Difference,
    Estimate,
    Logged,
    MetricPolicy,
    Question,
    Value,
    cuped,
    fixed_size,
    load_policy,
    looking_size,
    off_policy,
    plain,
    stratified,
)
from tools.reporting import terminal

T = TypeVar("T")
_MAX_LINE, _MAX_ROWS = 2**16, 5_000_000
#: How many the rates of a comparison are divided among, roughly as a policy does: steps and metrics.
_PARTS = 50


class _ValueLine(msgspec.Struct, forbid_unknown_fields=True):
    """A line for `compare`."""

    arm: Literal["canary", "stable"]
    value: float
    before: float | None = None
    stratum: str = ""


class _LoggedLine(msgspec.Struct, forbid_unknown_fields=True):
    """A line for `estimate`."""

    reward: float
    behavior_logprob: float
    target_logprob: float
    guess: float | None = None
    value: float | None = None


def power(arguments: argparse.Namespace, console: Console) -> None:
    """Prints how many conversations tell an effect from a margin, and how many days these take."""
    policy = CanaryPolicy() if arguments.policy is None else load_policy(arguments.policy)
    known = {metric.name: metric for metric in policy.metrics}
    if arguments.metric not in known:
        raise CanaryError(f"metric {quoted(arguments.metric, 60)} is not in the policy; it has {', '.join(known)}")
    metric = known[arguments.metric]
    found = {
        name: _sizes(metric, effect, policy, arguments)
        for name, effect in (("as stable", 0.0), ("worse by --effect", arguments.effect))
    }
    if arguments.json:
        terminal.print_json(found)
        return
    table = Table("candidate", "question", "conversations, one look", "days", "looking all the time", "days", box=None)
    for name, sizes in found.items():
        told = [_number(sizes[key]) for key in ("fixed", "fixed_days", "looking", "looking_days")]
        table.add_row(name, "stop" if sizes["stops"] else "go on", *told)
    console.print(table)
    console.print(
        f"of both arms, at {arguments.share:.4g} for the canary, {arguments.per_day:,.0f} conversations a day"
    )


def _sizes(
    metric: MetricPolicy, effect: float, policy: CanaryPolicy, arguments: argparse.Namespace
) -> dict[str, float | bool | None]:
    measure = metric.measure
    if measure.tail_of:
        raise CanaryError(
            f"metric {metric.name} compares shares beyond a bar that moves: expected another, e.g. {measure.tail_of}"
        )
    baseline = measure.scaled(arguments.baseline)
    if baseline is None or effect <= -1:
        raise CanaryError(f"--baseline {arguments.baseline} or --effect {effect} is no number of metric {metric.name}")
    if not 0 < arguments.per_day < math.inf or not 0 <= arguments.deviation < math.inf:
        raise CanaryError(
            f"--per-day is {arguments.per_day:g} and --deviation {arguments.deviation:g}: expected conversations a day "
            f"above 0, and a deviation from 0 on"
        )
    worsening = measure.scaled_margin(effect)
    level = policy.alpha / _PARTS if effect > metric.margin else policy.beta
    more = metric.directions[0] > 0
    question = Question(
        measure.kind,
        baseline if more else 1 - baseline,
        measure.scaled_margin(arguments.deviation) if measure.kind == "mean" else 0.0,
        worsening,
        metric.margin_scaled,
        arguments.share,
    )
    fixed, looking = fixed_size(question, level, 0.8), looking_size(question, level)
    days = arguments.per_day
    sizes = {"fixed": fixed, "fixed_days": fixed / days, "looking": looking, "looking_days": looking / days}
    finite: dict[str, float | bool | None] = {key: _finite(value) for key, value in sizes.items()}
    return finite | {"stops": effect > metric.margin}


def compare(arguments: argparse.Namespace, console: Console) -> None:
    """Prints the difference between arms: plain, by CUPED and by strata, as far as the file has what they need."""
    values = [
        Value(row.arm == "canary", row.value, row.before, row.stratum) for row in _rows(arguments.file, _ValueLine)
    ]
    ways: dict[str, Callable[[list[Value]], Difference]] = {"plain": plain}
    if any(one.before is not None for one in values):
        ways["CUPED"] = cuped
    if any(one.stratum for one in values):
        ways["strata"] = stratified
    found = {name: way(values) for name, way in ways.items()}
    if arguments.json:
        terminal.print_json({name: msgspec.to_builtins(one) for name, one in found.items()})
        return
    table = Table("way", "canary less stable", "95% interval", "variance less by", box=None)
    for name, one in found.items():
        table.add_row(name, f"{one.value:+.5g}", f"{one.low:+.5g} to {one.high:+.5g}", f"{one.explained:.0%}")
    console.print(table)


def estimate(arguments: argparse.Namespace, console: Console) -> None:
    """Prints a candidate's value by the logs of another policy."""
    rows = [
        Logged(row.reward, row.behavior_logprob, row.target_logprob, row.guess, row.value)
        for row in _rows(arguments.file, _LoggedLine)
    ]
    found = off_policy(rows, min_effective=arguments.min_effective)
    if arguments.json:
        terminal.print_json(msgspec.to_builtins(found))
        return
    console.print(
        f"{found.rows:,} rows, effective sample size {found.effective:,.0f}, largest weight {found.largest:.1%} of all"
    )
    table = Table("estimator", "mean reward", "95% interval", box=None)
    named: dict[str, Estimate | None] = {"logged policy": found.behavior, "IPS": found.ips}
    named |= {"self-normalised IPS": found.self_normalised, "doubly robust": found.doubly_robust}
    for name, one in named.items():
        if one is not None:
            table.add_row(name, f"{one.value:.5g}", f"{one.low:.5g} to {one.high:.5g}")
    console.print(table)


def _rows(file: Path, kind: type[T]) -> list[T]:
    """Lines of a JSONL file. Raises `CanaryError` for one that is none; names it."""
    rows = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if len(line) > _MAX_LINE or number > _MAX_ROWS:
                raise CanaryError(f"{file}, line {number}: expected at most {_MAX_LINE} bytes and {_MAX_ROWS} lines")
            try:
                rows.append(msgspec.json.decode(line, type=kind))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise CanaryError(f"{file}, line {number}: {quoted(str(error), 300)}") from None
    return rows


def add_offline_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `power`, `compare` and `estimate` to the parser of `tools.canary`."""
    one = add("power", help="how many conversations a comparison needs, and how many days")
    one.add_argument("--policy", type=Path, metavar="FILE")
    one.add_argument("--metric", required=True)
    one.add_argument("--baseline", type=float, required=True, help="stable's mean, in the metric's unit")
    one.add_argument("--effect", type=float, required=True, help="how much worse, as margins are given")
    one.add_argument("--deviation", type=float, default=0.5, help="of a value, as margins are given (default: 0.5)")
    one.add_argument("--share", type=float, default=0.5, help="of the conversations for the canary (default: 0.5)")
    one.add_argument("--per-day", type=float, required=True, help="conversations a day")
    two = add("compare", help="a difference between arms with CUPED and strata")
    three = add("estimate", help="a candidate's value by the logs of another policy")
    three.add_argument(
        "--min-effective", type=float, default=100.0, help="smaller effective sample sizes say nothing (default: 100)"
    )
    for each in (two, three):
        each.add_argument("--file", type=Path, required=True, metavar="JSONL")
    for each in (one, two, three):
        each.add_argument("--json", action="store_true", help="print JSON")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | bool | None) -> str:
    return "never" if value is None else f"{math.ceil(value):,}" if value >= 100 else f"{value:.3g}"
