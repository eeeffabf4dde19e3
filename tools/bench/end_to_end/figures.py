"""What a run of one side measured, from its steps and what its processes had used."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from serving_bridge.telemetry import Record
from tools.bench import BenchmarkError
from tools.bench.processes import Sample


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
      t: when it was complete, unix seconds.
      tokens: sampled tokens that it was made of.
    """

    step: int
    t: float
    tokens: float
    reward: float | None


@dataclass(frozen=True)
class Skill:
    """A held-out evaluation.

    Attributes:
      t: when it was complete, unix seconds.
      paused_s: for how long training waited for it; 0 where both go on at once.
    """

    step: int
    t: float
    paused_s: float
    accuracy: float
    mean_score: float


@dataclass(frozen=True)
class Run:
    """All that was seen of one run; `launched` is in unix seconds."""

    launched: float
    steps: tuple[Step, ...]
    skills: tuple[Skill, ...]
    samples: tuple[Sample, ...]


def run_of(records: Iterable[Record], samples: Sequence[Sample], *, launched: float) -> Run:
    """Sorts the events of a run; a step that a restart took again counts as it came last.

    Args:
      launched: unix seconds. What a peer needs to look at its first step comes on top: it is no part of its work.
    """
    steps: dict[int, Step] = {}
    skills = []
    for record in records:
        if record["event"] == "step":
            steps[record["step"]] = Step(record["step"], record["t"], record["num_tokens"], record.get("reward"))
        elif record["event"] == "first_step":
            launched += record.get("paused_s", 0.0)
        elif record["event"] == "heldout":
            paused_s = record.get("paused_s", 0.0)
            skills.append(Skill(record["step"], record["t"], paused_s, record["accuracy"], record["mean_score"]))
    ordered = tuple(steps[number] for number in sorted(steps))
    return Run(launched, ordered, tuple(skills), tuple(samples))


@dataclass(frozen=True)
class Figures:
    """One run, without its first steps. Times are seconds, means are over steps.

    Attributes:
      step_walls: of each step; evaluations that training waits for are left out here and in all that follows.
      step_wall: mean of them.
      step_cpu: mean CPU seconds of a step, by role.
      tokens_per_s: sampled tokens, by wall time.
      memory: bytes at the moment when the sum was largest, start-up included, by role.
      load: mean load average.
      others: cores that other processes of the machine kept busy, mean.
      first_step: from the launch to the end of the first step.
      skills: (step, seconds from launch, accuracy, mean score) of each held-out evaluation.
      target: seconds from launch to the first evaluation at the target accuracy, and its step; None if not reached.
      rewards: (step, mean reward of the batch).
    """

    steps: int
    step_walls: tuple[float, ...]
    step_wall: float
    step_cpu: dict[str, float]
    tokens_per_s: float
    memory: dict[str, int]
    load: float
    others: float
    first_step: float
    skills: tuple[tuple[int, float, float, float], ...]
    target: tuple[float, int] | None
    rewards: tuple[tuple[int, float | None], ...]

    @property
    def cpu(self) -> float:
        """CPU seconds a step, of all processes."""
        return sum(self.step_cpu.values())

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())


def figures(run: Run, *, skip: int, last: int, target: float | None) -> Figures:
    """What a run measured in the steps after `skip`, up to `last`.

    Raises:
      BenchmarkError: it has fewer than two such steps.
    """
    taken = [step for step in run.steps if skip <= step.step <= last]
    if len(taken) < 3:
        raise BenchmarkError(
            f"{len(taken)} steps from {skip} to {last}, expected 3 or more: raise --steps, or lower --skip"
        )
    begin, end = taken[0].t, taken[-1].t
    pauses = [(skill.t - skill.paused_s, skill.t) for skill in run.skills if skill.paused_s]
    walls = tuple(
        later.t - earlier.t - _overlap(pauses, earlier.t, later.t) for earlier, later in itertools.pairwise(taken)
    )
    measured_s, number = sum(walls), len(walls)
    inside = [sample for sample in run.samples if begin <= sample.t <= end] or list(run.samples)
    roles = sorted({role for sample in run.samples for role in sample.cpu_s})
    step_cpu = {role: _used(run.samples, role, begin, end, pauses) / number for role in roles}
    machine_s = _between(run.samples, lambda sample: sample.machine_s, begin, end)
    own_s = sum(_used(run.samples, role, begin, end, []) for role in roles)
    return Figures(
        steps=number,
        step_walls=walls,
        step_wall=measured_s / number,
        step_cpu={role: seconds for role, seconds in step_cpu.items() if seconds > 0},
        tokens_per_s=sum(step.tokens for step in taken[1:]) / measured_s,
        memory=_largest(run.samples),
        load=sum(sample.load for sample in inside) / len(inside),
        others=max(machine_s - own_s, 0.0) / (end - begin),
        first_step=run.steps[0].t - run.launched,
        skills=tuple((skill.step, skill.t - run.launched, skill.accuracy, skill.mean_score) for skill in run.skills),
        target=_reached(run, target),
        rewards=tuple((step.step, step.reward) for step in run.steps),
    )


def _reached(run: Run, target: float | None) -> tuple[float, int] | None:
    if target is None:
        return None
    found = (skill for skill in run.skills if skill.accuracy >= target)
    return next(((skill.t - run.launched, skill.step) for skill in found), None)


def _overlap(pauses: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    return sum(max(0.0, min(end, stop) - max(begin, start)) for start, stop in pauses)


def _used(
    samples: Sequence[Sample], role: str, begin: float, end: float, pauses: Sequence[tuple[float, float]]
) -> float:
    """CPU seconds of a role between two moments, less those during pauses."""

    def spent(start: float, stop: float) -> float:
        return _between(samples, lambda sample: sample.cpu_s.get(role, 0.0), start, stop)

    inside = [(max(begin, start), min(end, stop)) for start, stop in pauses if stop > begin and start < end]
    return spent(begin, end) - sum(spent(start, stop) for start, stop in inside)


def _between(samples: Sequence[Sample], value: Callable[[Sample], float], begin: float, end: float) -> float:
    return _at(samples, value, end) - _at(samples, value, begin)


def _at(samples: Sequence[Sample], value: Callable[[Sample], float], t: float) -> float:
    """The value at a moment, in a straight line between the samples around it."""
    after = bisect_right([sample.t for sample in samples], t)
    if after == 0 or after == len(samples):
        return value(samples[0] if after == 0 else samples[-1])
    earlier, later = samples[after - 1], samples[after]
    share = (t - earlier.t) / (later.t - earlier.t)
    return value(earlier) + share * (value(later) - value(earlier))


def _largest(samples: Sequence[Sample]) -> dict[str, int]:
    seen = [dict(sample.memory) for sample in samples if sample.memory is not None]
    return max(seen, key=lambda memory: sum(memory.values())) if seen else {}
