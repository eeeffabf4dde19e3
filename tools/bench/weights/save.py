"""What a checkpoint costs the training thread: real steps of Weir with a save in the background, and with a wait.

python -m tools.bench save [--models demo 100M] [--every 20] [--rounds 3] [--directory DIR] [--json PATH]

Three sides take turns, `--every` optimizer steps each: `none` saves nothing, `async` saves as the learner does before
the first of them, `sync` waits there until the checkpoint is on disk. Saved is what the learner saves: fp32 weights,
both moments, step and key. `blocked` is the time in which no step could run, over the time of those steps; `slowdown`
is what the same steps took more than those of `none` in the same round, which also counts what the writer takes from
them: cores, memory bandwidth, and on a CPU the buffers that could not be reused while Orbax still read them.

The default directory is that for temporary files: name one on the disk that a run would write to.

Not covered: several hosts, remote disks, and disks that are busy or full.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from learner_jax.batches import Batch
from learner_jax.checkpoints import Checkpoints, Position
from learner_jax.losses import loss_weights
from learner_jax.models import init_parameters
from learner_jax.settings import LearnerSettings, LossSettings
from learner_jax.training import Engine, TrainState, objective
from tools.bench.learner import Shape
from tools.bench.timing import Spread, bench_parser, console, positive, progress, spread, this_hardware, write_json

SIDES = ("none", "async", "sync")
#: Blocking share of a step that an asynchronous save may cost at most.
AIM = 0.01
_WARMUP = 2


@dataclass(frozen=True)
class Model:
    """A model and the batch of its steps; sequences are all of one length."""

    shape: Shape
    num_sequences: int
    length: int
    row_tokens: int
    microbatch_rows: int


MODELS: Mapping[str, Model] = {
    # configs/demo.toml: 64 groups of 8 answers.
    "demo": Model(Shape(2, 128, 4, 2, 32, 512, 64, tied=True), 512, 13, 128, 24),
    "100M": Model(Shape(12, 768, 12, 4, 64, 2048, 32_000, tied=True), 4, 32, 128, 1),
}


@dataclass(frozen=True)
class Window:
    """The steps from one save to the next, seconds.

    Attributes:
      blocked_s: in which the save kept the training thread; 0 without one.
      first_step_s: of the step after the save.
      committed_s: from the start of the save until it was on disk; None without one.
    """

    blocked_s: float
    total_s: float
    first_step_s: float
    step_s: float
    committed_s: float | None


@dataclass(frozen=True)
class Row:
    """One side of one model, over its rounds."""

    model: str
    side: str
    every: int
    num_bytes: int
    blocked_s: Spread
    blocked_share: Spread
    slowdown: Spread
    step_s: Spread
    first_step_s: Spread
    committed_s: Spread | None


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table and the aim, and writes them as JSON where asked to."""
    parser = bench_parser("save", __doc__)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS), help="default all")
    parser.add_argument("--every", type=positive, default=20, help="steps between saves (default 20, the demo's)")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of each side (default 3)")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where checkpoints are written, and deleted")
    given = parser.parse_args(argv)
    if given.directory is not None and not given.directory.is_dir():
        parser.error(f"--directory {given.directory}: expected an existing folder")
    hardware = this_hardware()
    out = console()
    out.print(f"save: a checkpoint every {given.every} steps, fp32, {given.rounds} rounds", highlight=False)
    out.print(str(hardware), highlight=False, soft_wrap=True)
    rows: list[Row] = []
    with progress() as bar:
        task = bar.add_task("compiling", total=len(given.models) * given.rounds * len(SIDES))
        for name in given.models:
            with tempfile.TemporaryDirectory(dir=given.directory) as folder:
                advance = lambda side, name=name: bar.update(task, advance=1, description=f"{name}: {side}")  # noqa: E731
                windows, num_bytes = measure(
                    MODELS[name], Path(folder), every=given.every, rounds=given.rounds, done=advance
                )
            rows += rows_of(name, windows, every=given.every, num_bytes=num_bytes)
    out.print(table(rows))
    verdicts = [verdict(row) for row in rows if row.side == "async"]
    for line in verdicts:
        out.print(line, highlight=False)
    if given.json is not None:
        settings = {"models": given.models, "every": given.every, "rounds": given.rounds, "dtype": "float32"}
        write_json(given.json, "save", hardware, settings, {"rows": [asdict(row) for row in rows], "aim": AIM})
        out.print(f"wrote {given.json}", highlight=False)


def measure(
    model: Model, folder: Path, *, every: int, rounds: int, done: Callable[[str], Any]
) -> tuple[dict[str, list[Window]], int]:
    """Windows by side, of corresponding rounds, and the bytes of one checkpoint."""
    engine, state, batch = prepare(model)
    committed: list[float] = []

    def log(event: str, **fields: Any) -> None:
        if event == "committed":
            committed.append(fields["seconds"])

    checkpoints = Checkpoints(folder, keep=1, log=log)
    numbers = itertools.count(1)

    def step() -> float:
        nonlocal state
        started = time.perf_counter()
        state, metrics = engine.step(state, batch, current_version=1)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - started

    def save(side: str) -> float:
        started = time.perf_counter()
        checkpoints.save(state, Position(next(numbers), 0, 0, ()))
        if side == "sync":
            checkpoints.wait()
        return time.perf_counter() - started

    def window(side: str) -> Window:
        saves = side != "none"
        started = time.perf_counter()
        blocked = save(side) if saves else 0.0
        steps = [step() for _ in range(every)]
        total = time.perf_counter() - started
        if saves:
            checkpoints.finish()
        return Window(blocked, total, steps[0], statistics.median(steps), committed[-1] if saves else None)

    for _ in range(_WARMUP):
        step()
    save("sync")  # the first one imports and starts threads
    checkpoints.finish()
    windows: dict[str, list[Window]] = {side: [] for side in SIDES}
    for i in range(rounds):
        first = i % len(SIDES)
        for side in SIDES[first:] + SIDES[:first]:
            windows[side].append(window(side))
            done(side)
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    checkpoints.close()
    return windows, num_bytes


def prepare(model: Model) -> tuple[Engine, TrainState, Batch]:
    """A real engine with random weights, and a batch whose ratios are near 1."""
    config = model.shape.config()
    settings = LearnerSettings(
        steps=1,
        groups_per_step=model.num_sequences,
        sequence_length=model.length,
        row_tokens=(model.row_tokens,),
        microbatch_rows=model.microbatch_rows,
        loss=LossSettings(),
    )
    engine = Engine(
        settings,
        config,
        objective=objective.reinforcement(settings.loss),
        temperature=1.0,
        devices=jax.devices()[:1],
    )
    initial = jax.jit(init_parameters, static_argnums=0, out_shardings=engine.parameter_shardings)
    rng = np.random.default_rng(0)
    shape = (model.num_sequences, model.length)
    answers = np.broadcast_to(np.arange(model.length) >= model.length // 2, shape).astype(np.float32)
    arrays: dict[str, Any] = {
        "tokens": rng.integers(1, config.vocab_size, shape).astype(np.int32),
        "weights": loss_weights(answers, reduction="sequence_mean"),
        "advantages": (rng.standard_normal((shape[0], 1)) * answers).astype(np.float32),
        "behavior_logprobs": (-np.log(config.vocab_size) * answers).astype(np.float32),
        "policy_version": np.where(answers > 0, 0, -1).astype(np.int32),
        "lengths": np.full(shape[0], model.length, np.int64),
        "groups": np.arange(shape[0]),
        "shared": np.zeros(shape[0], np.int64),
    }
    return engine, engine.init_state(initial(config, jax.random.key(0)), seed=0), Batch(**arrays)


def rows_of(model: str, windows: Mapping[str, Sequence[Window]], *, every: int, num_bytes: int) -> list[Row]:
    """One row a side; slowdown is relative to the side `none` of the same round."""
    rows = []
    for side, found in windows.items():
        committed = [window.committed_s for window in found if window.committed_s is not None]
        rows.append(
            Row(
                model=model,
                side=side,
                every=every,
                num_bytes=num_bytes,
                blocked_s=spread([window.blocked_s for window in found]),
                blocked_share=spread([window.blocked_s / window.total_s for window in found]),
                slowdown=spread([w.total_s / base.total_s - 1 for w, base in zip(found, windows["none"], strict=True)]),
                step_s=spread([window.step_s for window in found]),
                first_step_s=spread([window.first_step_s for window in found]),
                committed_s=spread(committed) if committed else None,
            )
        )
    return rows


def table(rows: Sequence[Row]) -> Table:
    """Medians with their spread over the rounds."""
    found = Table(title="median (10th-90th percentile) over rounds", title_justify="left")
    for heading in ("model", "side"):
        found.add_column(heading)
    for heading in ("checkpoint, MB", "blocked, ms", "blocked, %", "slowdown, %", "step, ms", "next step, ms"):
        found.add_column(heading, justify="right")
    found.add_column("on disk after, s", justify="right")
    for row in rows:
        found.add_row(
            row.model,
            row.side,
            f"{row.num_bytes / 1e6:.0f}",
            row.blocked_s.show(scale=1e3),
            row.blocked_share.show(scale=100),
            row.slowdown.show(scale=100, digits=2),
            row.step_s.show(scale=1e3),
            row.first_step_s.show(scale=1e3),
            "" if row.committed_s is None else row.committed_s.show(),
            end_section=row.side == SIDES[-1],
        )
    return found


def verdict(row: Row) -> str:
    """Whether an asynchronous save blocks as little as it should."""
    met = "met" if row.blocked_share.median <= AIM else "missed"
    return (
        f"{row.model}: an asynchronous save every {row.every} steps blocks {row.blocked_share.median:.2%} of the time; "
        f"at most {AIM:.0%} is the aim: {met}"
    )
