"""Where a run stands: the figures that the page shows as numbers, words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from configs.schema import Config
from serving_bridge.queue import Progress
from serving_bridge.routing import ReplicaRegistry
from tools.dashboard.texts import line
from tools.reporting import figures

#: Steps over which rates and shares are averaged, and rewards.
_WINDOW, _REWARDS = 20, 5
#: Longer silence of every process means that none runs.
_NOTHING_RUNS_S = 300.0
_MAX_REPLICAS, _MAX_WAITS = 256, 8


def standing(history: figures.RunHistory, config: Config, *, now: float) -> dict[str, Any]:
    """The run's progress and its newest figures; None for what was not measured.

    Args:
      now: wall clock, seconds since the epoch.
    """
    steps = figures.steps_in_order(history)
    recent = steps[-_WINDOW:]
    intervals = figures.intervals_during(history, recent) or list(history.intervals)[-_WINDOW:]
    shares = figures.idle_shares(recent, figures.intervals_during(history, recent))
    better = None
    if shares.bottleneck not in (None, "balanced"):
        better = figures.balance(shares, config, history.engine)
    over = history.is_over
    silent_s = 0.0 if over or history.last_t is None else max(now - history.last_t, 0.0)
    last = recent[-1] if recent else {}
    return {
        "phase": line(history.phase, 80),
        "over": over,
        "began": history.first_t,
        "seconds": round(history.wall_s(None if over or silent_s > _NOTHING_RUNS_S else now), 1),
        "silent": round(silent_s, 1),
        "step": last.get("step") if steps else None,
        "warm_step": history.warm_start[-1].get("step") if history.warm_start and not steps else None,
        "left": _left(recent, config.learner.steps),
        "reward": figures.mean(figures.values(steps[-_REWARDS:], "reward")),
        "reward_first": figures.mean(figures.values(steps[:_REWARDS], "reward")),
        "kl": last.get("kl"),
        "entropy": last.get("entropy"),
        "staleness": figures.mean(figures.values(recent, "staleness_mean")),
        "mismatch": last.get("mismatch_mean_abs_logprob"),
        "tokens_per_s": figures.tokens_per_s(intervals),
        "learner_idle": shares.learner,
        "rollout_idle": shares.rollout,
        "bottleneck": shares.bottleneck,
        "balance": None if better is None else figures.balance_text(better),
        "graded": history.is_graded,
        "held_out": held_out(history),
        "left_out": figures.left_out(history),
        "waits": [
            {
                "who": line(process, 60),
                "what": line(wait.get("what"), 200),
                "on": line(wait.get("on"), 60),
                "waited": round(waited, 1),
                "limit": wait.get("limit_s"),
            }
            for process, wait, waited in figures.waits_now(history)[:_MAX_WAITS]
        ],
    }


def held_out(history: figures.RunHistory) -> list[float]:
    """The first and the last skill on held-out problems; empty before the first."""
    before, after = history.evaluations.get("before"), history.evaluations.get("after")
    records = [*([before] if before else []), *history.heldout, *([after] if after else [])]
    skills = figures.values(records, "mean_score" if history.is_graded else "accuracy")
    return [skills[0], skills[-1]] if skills else []


def replicas(history: figures.RunHistory, registry: ReplicaRegistry) -> list[dict[str, Any]]:
    """Each replica with its state, the version that it serves, and its newest weight round.

    The fleet's own rows go before its events: they tell when they were written, and a killed fleet writes no event.
    """
    rows = {row.name: (registry.state(row), row.version, row.reason) for row in registry.replicas()}
    if not rows:
        rows = {
            str(name): (str(r.get("state")), r.get("version", -1), str(r.get("reason") or ""))
            for name, r in history.replicas.items()
            if r.get("state") != "gone"
        }
    rounds = {str(record.get("replica")): record for record in history.rounds}
    busy: Mapping[str, Any] = {}
    for record in list(history.intervals)[-1:]:
        busy = record.get("replicas") or {}
    return [
        {
            "name": line(name, 80),
            "state": line(state, 40),
            "version": version,
            "reason": line(reason, 200),
            "outcome": line(rounds.get(name, {}).get("outcome") or "", 40),
            "pause": rounds.get(name, {}).get("pause_s"),
            "in_flight": (busy.get(name) or {}).get("in_flight"),
            "limit": (busy.get(name) or {}).get("limit"),
        }
        for name, (state, version, reason) in sorted(rows.items())[:_MAX_REPLICAS]
    ]


def queue(progress: Progress | None, problem: str, config: Config) -> dict[str, Any]:
    """How full the queue is."""
    if progress is None:
        return {"problem": problem}
    return {
        "problem": problem,
        "ready": progress.num_ready,
        "leased": progress.num_leased,
        "trained": progress.num_trained,
        "claimed": progress.num_claimed,
        "acknowledged": progress.num_acknowledged,
        "dropped": progress.num_dropped,
        "dead": progress.num_dead,
        "per_step": config.learner.groups_per_step,
    }


def _left(recent: list[dict[str, Any]], total: int) -> float | None:
    """Seconds left at the pace of the last steps."""
    if len(recent) < 3 or recent[-1]["step"] >= total:
        return None
    made = recent[-1]["step"] - recent[0]["step"]
    return (recent[-1]["t"] - recent[0]["t"]) / made * (total - recent[-1]["step"])
