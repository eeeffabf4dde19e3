"""What the events of a run add up to: the history by kind, and the figures that view, report and summary share."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

from configs.schema import Config
from serving_bridge.telemetry import Record
from tools.reporting.comparison import compared

Bottleneck = Literal["rollout-bound", "train-bound", "balanced"]

#: Idle shares nearer to each other than this name no bottleneck.
_BALANCED = 0.05

#: A `waits` event speaks for the time after it for so long; while waits last it comes three times as often.
_WAITS_FOR_S = 15.0

#: Counters of the rollout workers that are added up over the whole run.
_TOTALS = ("mixed_version_answers", "skipped_prompts", "verdicts", "failed_verdicts", "unjudged_groups")

#: Longer silence of every process means that none ran: waits and counters are written every few seconds.
_NOTHING_RAN_S = 300.0

#: Names of the phases that `tools.train` begins and ends with.
FIRST_PHASE, LAST_PHASE = "starting", "finished"
#: a run that was asked to stop, and goes on when it is started again
STOPPED_PHASE = "stopped"
_AT_REST = (LAST_PHASE, STOPPED_PHASE)

#: Of a run whose learner may take no step.
HELD_PHASE = "held"

#: A mean score this far from the accuracy is worth telling beside it.
GRADED_FROM = 0.005

#: Steps over which the first and the last reward are averaged.
_REWARD_STEPS = 5


@dataclass
class RunHistory:
    """Events sorted by kind.

    Attributes:
      steps: by step number; a step that a restart trained again counts as it came last.
      intervals: the rollout workers' counters; bounded when the caller needs recent ones only.
      rounds: weight rounds of every replica.
      carried_on: starts that changed settings, or went on after the run had finished.
      waits: the last `waits` event of each process: what it waits for now.
      replicas: the last `replica` event of each replica: its state and version.
      problems: (time, line) per event that carries an error or tells of a restart, newest last.
      ended: the learner's last `ended` event, None while it trains.
      held: the learner's `hold` event while training is held, None otherwise.
      held_s: seconds for which it was, in holds that are over.
      sittings: how often the run was begun or taken up again.
      totals: sums of some of the rollout workers' counters, over all intervals.
      paused_s: time between sittings, in which nothing ran.
    """

    steps: dict[int, Record] = field(default_factory=dict)
    intervals: deque[Record] = field(default_factory=deque)
    rounds: list[Record] = field(default_factory=list)
    heldout: list[Record] = field(default_factory=list)
    warm_start: list[Record] = field(default_factory=list)
    evaluations: dict[str, Record] = field(default_factory=dict)
    phases: list[Record] = field(default_factory=list)
    problems: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=50))
    engine: Record | None = None
    carried_on: list[Record] = field(default_factory=list)
    waits: dict[str, Record] = field(default_factory=dict)
    replicas: dict[str, Record] = field(default_factory=dict)
    ended: Record | None = None
    held: Record | None = None
    held_s: float = 0.0
    sittings: int = 1
    paused_s: float = 0.0
    totals: Counter[str] = field(default_factory=Counter)
    first_t: float | None = None
    last_t: float | None = None

    def add(self, records: Iterable[Record]) -> None:
        for record in records:
            self._add(record)

    def _add(self, record: Record) -> None:
        when = record.get("t")
        if isinstance(when, int | float):
            self._pass_time(record, when)
        match record["event"]:
            case "step":
                self.ended = self.held = None
                self._add_step(record)
            case "ended":
                self.ended, self.held = record, None
            case "hold":
                self.held = record if record.get("held") else None
                self.held_s += record.get("seconds") or 0.0
            case "interval":
                self.intervals.append(record)
                for name in _TOTALS:
                    self.totals[name] += record.get(name) or 0
            case "round":
                self.rounds.append(record)
            case "heldout":
                self.heldout.append(record)
            case "warm_start":
                self.warm_start.append(record)
            case "evaluation":
                self.evaluations[record["which"]] = record
            case "engine":
                self.engine = record
            case "carried_on":
                self.carried_on.append(record)
            case "waits":
                self.waits[str(record.get("process"))] = record
            case "replica":
                self.replicas[record["replica"]] = record
            case "phase":
                self.phases.append(record)
        if record.get("error") or record["event"] == "restart":
            what = record.get("error") or f"{record.get('name')} ended with status {record.get('status')}; restarted"
            self.problems.append((self.last_t or 0.0, f"{record.get('process')} {record['event']}: {what}"))

    def _pass_time(self, record: Record, when: float) -> None:
        if self.first_t is None or self.last_t is None:
            self.first_t = self.last_t = when
            return
        silent_s = when - self.last_t
        begun_again = record["event"] == "phase" and record["name"] == FIRST_PHASE
        if begun_again or silent_s > _NOTHING_RAN_S:
            self.sittings += 1
            self.paused_s += max(silent_s, 0.0)
        self.last_t = when

    def wall_s(self, now: float | None = None) -> float:
        """Seconds that the run has taken, all sittings together, up to its last event or to `now`."""
        if self.first_t is None or self.last_t is None:
            return 0.0
        return max((self.last_t if now is None else now) - self.first_t - self.paused_s, 0.0)

    @property
    def phase(self) -> str:
        """What the run is at, also where no `tools.train` says so."""
        if self.held is not None:
            return HELD_PHASE
        last = self.phases[-1] if self.phases else None
        learned = next(reversed(self.steps.values()), None) if self.steps else None
        if last is not None and (last["name"] not in _AT_REST or learned is None or learned["t"] <= last["t"]):
            return str(last["name"])
        if self.ended is not None:
            return LAST_PHASE if self.ended.get("reason") == LAST_PHASE else f"ended ({self.ended.get('reason')})"
        if learned is not None:
            return "training"
        return "supervised start" if self.warm_start else FIRST_PHASE

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be expected of the run by itself."""
        return self.phase in _AT_REST or (not self.phases and self.ended is not None)

    @property
    def is_graded(self) -> bool:
        """Whether held-out answers are hardly ever right as a whole, so that accuracy would hide what is learned."""
        measured = [
            (record["accuracy"], record["mean_score"])
            for record in [*self.evaluations.values(), *self.heldout]
            if record.get("accuracy") is not None and record.get("mean_score")
        ]
        return bool(measured) and all(accuracy < score / 2 for accuracy, score in measured)

    def _add_step(self, record: Record) -> None:
        # A resumed learner trains the steps after its checkpoint again; those of its former life are void.
        while self.steps and next(reversed(self.steps)) >= record["step"]:
            self.steps.popitem()
        self.steps[record["step"]] = record


@dataclass(frozen=True)
class IdleShares:
    """Who waits for whom, as shares of time.

    Attributes:
      learner: share of step time spent waiting for groups; None before the first step.
      rollout: share of the workers' time in which the gate or the fleet kept them from sampling.
      bottleneck: `rollout-bound` if the learner waits more than the workers do, `train-bound` if it is the reverse.
    """

    learner: float | None
    rollout: float | None
    bottleneck: Bottleneck | None


@dataclass(frozen=True)
class Balance:
    """How a run's devices would be divided so that neither side waits, if both sides scale with theirs.

    Attributes:
      unit: what is counted: "cores" or "devices".
      learner, rollout: of all units, as they are divided now.
      learner_balanced, rollout_balanced: as they would be divided; the sum is the same.
      speedup: of the balanced division over today's.
    """

    unit: str
    learner: float
    rollout: float
    learner_balanced: float
    rollout_balanced: float
    speedup: float


def balance(shares: IdleShares, config: Config, engine: Record | None) -> Balance | None:
    """The division that would balance a run; None before both sides were measured.

    A side that is busy a share b of its n units needs b n of them for today's pace. All units together, divided in
    proportion to the needs, give (all units) / (sum of needs) times that pace.

    Args:
      engine: the learner's `engine` event, which knows its devices.
    """
    if shares.learner is None or shares.rollout is None or engine is None:
        return None
    on_cpu = engine["platform"] == "cpu"
    devices = math.prod(engine["mesh"].values())
    learner = float(config.learner.cpu_cores or 1) if on_cpu else float(devices)
    per_replica = config.serving.threads if on_cpu else 1
    size = config.serving.tensor_parallel_size * config.serving.pipeline_parallel_size
    rollout = float(config.serving.replicas * size * per_replica)
    needs = (1 - shares.learner) * learner, (1 - shares.rollout) * rollout
    if min(needs) <= 0:
        return None
    total, needed = learner + rollout, sum(needs)
    return Balance(
        unit="cores" if on_cpu else "devices",
        learner=learner,
        rollout=rollout,
        learner_balanced=total * needs[0] / needed,
        rollout_balanced=total * needs[1] / needed,
        speedup=total / needed,
    )


def balance_text(balance: Balance) -> str:
    """One line for people."""
    return (
        f"{balance.learner_balanced:.2g} of {balance.learner + balance.rollout:g} {balance.unit} for the learner and "
        f"{balance.rollout_balanced:.2g} for sampling would balance it (now {balance.learner:g} and "
        f"{balance.rollout:g}): up to {balance.speedup:.2f}x as fast"
    )


def steps_in_order(history: RunHistory) -> list[Record]:
    return list(history.steps.values())


def series(records: Sequence[Record], key: str) -> tuple[list[float], list[float]]:
    """(steps, values) of one field, leaving out records in which it was not measured."""
    points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    return [float(x) for x, _ in points], [float(y) for _, y in points]


def values(records: Sequence[Record], key: str) -> list[float]:
    return [float(record[key]) for record in records if record.get(key) is not None]


def mean(numbers: Sequence[float]) -> float | None:
    return math.fsum(numbers) / len(numbers) if numbers else None


def intervals_during(history: RunHistory, steps: Sequence[Record]) -> list[Record]:
    """The workers' intervals between the start of the first and the end of the last of some steps."""
    if not steps:
        return []
    started = steps[0]["t"] - (steps[0].get("step_s") or 0)
    return [r for r in history.intervals if started <= r["t"] <= steps[-1]["t"]]


def idle_shares(steps: Sequence[Record], intervals: Sequence[Record]) -> IdleShares:
    learner = _share(steps, "wait_s", "step_s")
    rollout = _share(intervals, "idle_s", "seconds")
    if learner is None or rollout is None:
        return IdleShares(learner, rollout, None)
    if abs(learner - rollout) < _BALANCED:
        return IdleShares(learner, rollout, "balanced")
    return IdleShares(learner, rollout, "rollout-bound" if learner > rollout else "train-bound")


def tokens_per_s(intervals: Sequence[Record]) -> float | None:
    """Sampled tokens per second of all workers together (each worker writes intervals of its own)."""
    workers = {record.get("process") for record in intervals}
    rates = [
        _share([record for record in intervals if record.get("process") == worker], "tokens", "seconds")
        for worker in workers
    ]
    known = [rate for rate in rates if rate is not None]
    return math.fsum(known) if known else None


def left_out(history: RunHistory) -> list[str]:
    """What the run could not learn from, a phrase each; empty where there was nothing."""
    totals = history.totals
    told = {
        f"{totals['skipped_prompts']} prompts too long": totals["skipped_prompts"],
        f"{totals['failed_verdicts']} of {totals['verdicts']} verdicts failed": totals["failed_verdicts"],
        f"{totals['unjudged_groups']} groups without enough verdicts": totals["unjudged_groups"],
    }
    return [phrase for phrase, number in told.items() if number]


def waits_now(history: RunHistory) -> list[tuple[str, dict[str, Any], float]]:
    """(process, wait, seconds so far) of every wait that goes on as of the last event, the longest first."""
    now = history.last_t or 0.0
    found = [
        (process, wait, wait["waited_s"] + now - record["t"])
        for process, record in history.waits.items()
        if now - record["t"] < _WAITS_FOR_S  # else the process was killed: it would have said so again
        for wait in record.get("waits") or []
    ]
    return sorted(found, key=lambda row: -row[2])


def replica_states(history: RunHistory) -> dict[str, int]:
    """Number of replicas in each state; those that have left are not counted."""
    return dict(Counter(r["state"] for r in history.replicas.values() if r["state"] != "gone"))


def staleness_shares(steps: Sequence[Record]) -> list[float]:
    """Share of the trained tokens by the versions that they lagged: entry k is of those of k versions."""
    counts = [sum(column) for column in zip_longest(*(r.get("staleness_tokens") or [] for r in steps), fillvalue=0)]
    total = sum(counts)
    return [count / total for count in counts] if total else []


def weight_updates(history: RunHistory) -> list[Record]:
    """Rounds that gave a replica weights which training had changed."""
    return [r for r in history.rounds if r.get("outcome") == "updated" and (r.get("step") or 0) > 0]


def mismatch_mean(steps: Sequence[Record]) -> float | None:
    """Mean |sampler - trainer| log-prob, every compared token weighing the same."""
    measured = [r for r in steps if r.get("mismatch_mean_abs_logprob") is not None and r.get("mismatch_tokens")]
    tokens = math.fsum(r["mismatch_tokens"] for r in measured)
    total = math.fsum(r["mismatch_mean_abs_logprob"] * r["mismatch_tokens"] for r in measured)
    return total / tokens if tokens else None


def summarize(history: RunHistory) -> dict[str, Any]:
    """The figures of summary.json; None where the run has not measured one.

    `wall_s` is the time of all sittings, from the first event on; what lies between two sittings does not count.
    """
    steps = steps_in_order(history)
    intervals = intervals_during(history, steps)
    shares = idle_shares(steps, intervals)
    updates = weight_updates(history)
    rewards = values(steps, "reward")
    pauses = values(updates, "pause_s")
    return {
        **compared(history.evaluations.get("before"), history.evaluations.get("after")),
        "reward_first": mean(rewards[:_REWARD_STEPS]),
        "reward_last": mean(rewards[-_REWARD_STEPS:]),
        "steps": steps[-1]["step"] if steps else 0,
        "is_graded": history.is_graded,
        "wall_s": history.wall_s(),
        "sittings": history.sittings,
        "held_s": history.held_s,
        "train_wall_s": steps[-1]["t"] - steps[0]["t"] + (steps[0].get("step_s") or 0) if steps else None,
        "kl_last": steps[-1].get("kl") if steps else None,
        "staleness_mean": mean(values(steps, "staleness_mean")),
        "staleness_max": max(values(steps, "staleness_max"), default=None),
        "staleness_shares": staleness_shares(steps),
        "mismatch_mean_abs_logprob": mismatch_mean(steps),
        "mismatch_max_abs_logprob": max(values(steps, "mismatch_max_abs_logprob"), default=None),
        "tokens_per_s": tokens_per_s(intervals),
        "learner_idle_share": shares.learner,
        "rollout_idle_share": shares.rollout,
        "bottleneck": shares.bottleneck,
        "weight_updates": len(updates),
        "weight_pause_mean_s": mean(pauses),
        "weight_pause_max_s": max(pauses, default=None),
        "inflight_survived": history.totals["mixed_version_answers"],
        "skipped_prompts": history.totals["skipped_prompts"],
        "verdicts": history.totals["verdicts"],
        "failed_verdicts": history.totals["failed_verdicts"],
        "unjudged_groups": history.totals["unjudged_groups"],
        "dropped_stale": sum(int(value) for value in values(steps, "dropped_stale")),
    }


def _share(records: Sequence[Record], part: str, whole: str) -> float | None:
    total = math.fsum(values(records, whole))
    return math.fsum(values(records, part)) / total if total > 0 else None
