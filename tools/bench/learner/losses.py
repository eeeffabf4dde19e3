"""GAE and V-trace, sequential and associative, against the sequential scan of rlax.

python -m tools.bench losses [--batch 64] [--lengths 256 4096 32768] [--repeats 10] [--json PATH]

All sides get the same fp32 arrays [B, T], every token a decision, and return advantages and value targets. They must
agree within 1e-5 of the largest magnitude before anything is measured. Ours does more than the peer: rlax knows no
tokens between decisions, so it has one recurrence where ours has two.

The last lines name the form that `learner_jax.losses.recurrence.ASSOCIATIVE_FROM` should choose on this platform.

rlax is taken from the environment, or else installed with what it needs beside Weir's own packages into
~/.cache/weir/peers/rlax (XDG_CACHE_HOME is respected), in the versions of tools/requirements/dev.txt.

Not covered: gradients (none flow through targets), bf16, batches spread over several devices.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from learner_jax.losses import Targets, generalized_advantages, vtrace
from tools.bench import BenchmarkError
from tools.bench.learner.peers import peers_folder
from tools.bench.timing import (
    Compiled,
    Samples,
    Spread,
    bench_parser,
    compiled,
    console,
    cost_name,
    interleaved,
    positive,
    progress,
    ratio,
    spread,
    this_hardware,
    write_json,
)

Form = Literal["sequential", "associative"]
FORMS: tuple[Form, ...] = ("sequential", "associative")
PEER = "rlax"
ESTIMATORS = ("gae", "vtrace")

TOLERANCE = 1e-5
#: A token is felt, above the tolerance, a thousand tokens earlier: carrying far is checked too. At 0.999 fp32 sums
#: of 32768 tokens would differ by almost the tolerance through their order alone.
_TRACE_DECAY = 0.99

_REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements" / "dev.txt"
#: What `import rlax` needs and the learner does not bring; dm-tree and decorator are for TensorFlow Probability.
_PEER_PACKAGES = ("rlax", "chex", "distrax", "dm-env", "dm-tree", "tfp-nightly", "decorator", "toolz")


@dataclass(frozen=True)
class Case:
    """One estimator at one length, compiled for all sides; `differences` from the peer as `check` says."""

    estimator: str
    length: int
    arrays: tuple[jax.Array, ...]
    sides: Mapping[str, Compiled]
    differences: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One side at one length: seconds per call, and how often its cost fits into the peer's, round by round."""

    estimator: str
    length: int
    form: str
    difference: float
    compile_s: float
    cost_s: Spread
    wall_s: Spread
    peer_over_this: Spread


@dataclass(frozen=True)
class Choice:
    """The faster form at one length; `sequential_over_associative` is over both estimators, round by round."""

    length: int
    faster: Form
    sequential_over_associative: Spread


def main(argv: Sequence[str]) -> None:
    """Measures, prints the tables and the choice, and writes them as JSON where asked to.

    Raises:
      BenchmarkError: results disagree, or rlax cannot be had.
    """
    parser = bench_parser("losses", __doc__)
    parser.add_argument("--batch", type=positive, default=64, help="sequences (default 64)")
    parser.add_argument(
        "--lengths", type=positive, nargs="+", default=(256, 4096, 32768), help="tokens (default 256 4096 32768)"
    )
    parser.add_argument("--repeats", type=positive, default=10, help="rounds (default 10)")
    arguments = parser.parse_args(argv)
    lengths = sorted(set(arguments.lengths))

    rlax = load_rlax()
    hardware = this_hardware()
    out = console()
    peer = f"{PEER} {rlax.__version__}"
    out.print(f"losses against {peer}: batch {arguments.batch}, fp32, {arguments.repeats} rounds", highlight=False)
    out.print(str(hardware), highlight=False, soft_wrap=True)
    with progress() as bar:
        # All are checked before the first is measured.
        cases = [
            prepare(estimator, rlax, batch=arguments.batch, length=length)
            for length in bar.track(lengths, description="compiling, comparing")
            for estimator in ESTIMATORS
        ]
        samples = [
            interleaved(
                {form: functools.partial(side.run, *case.arrays) for form, side in case.sides.items()},
                repeats=arguments.repeats,
            )
            for case in bar.track(cases, description="measuring")
        ]
    measured = list(zip(cases, samples, strict=True))
    rows = [row for case, of_case in measured for row in _rows(case, of_case, hardware.platform)]
    choices = [
        _choice(length, [of_case for case, of_case in measured if case.length == length], hardware.platform)
        for length in lengths
    ]
    _show(out, rows, choices, hardware.platform)
    if arguments.json is not None:
        settings = {"batch": arguments.batch, "lengths": lengths, "repeats": arguments.repeats, "dtype": "float32"}
        results = {
            "peer": peer,
            "cost": cost_name(hardware.platform),
            "rows": [asdict(row) for row in rows],
            "choices": [asdict(choice) for choice in choices],
            "associative_from": associative_from(choices),
        }
        write_json(arguments.json, "losses", hardware, settings, results)
        out.print(f"wrote {arguments.json}", highlight=False)


def prepare(estimator: str, rlax: Any, *, batch: int, length: int) -> Case:
    """Compiles all sides and compares their results.

    Raises:
      BenchmarkError: a result differs from the peer's.
    """
    arrays = inputs(estimator, batch=batch, length=length)
    built = {form: compiled(side, *arrays) for form, side in sides(estimator, rlax).items()}
    results = {form: side.run(*arrays) for form, side in built.items()}
    return Case(estimator, length, arrays, built, check(results, f"{estimator} at T = {length}"))


def inputs(estimator: str, *, batch: int, length: int) -> tuple[jax.Array, ...]:
    """Rewards, values, discounts, decisions, and for V-trace log ratios, all [B, T]; one episode a sequence."""
    rng = np.random.default_rng(0)
    shape = (batch, length)
    discounts = np.ones(shape, np.float32)
    discounts[:, -1] = 0
    arrays = [rng.normal(size=shape), rng.normal(size=shape), discounts]
    floats = [jnp.asarray(array, jnp.float32) for array in arrays]
    decisions = jnp.ones(shape, bool)
    if estimator == "gae":
        return (*floats, decisions)
    # As far apart as policy and behaviour are after a step or two; larger ratios would shorten the traces.
    return (*floats, decisions, jnp.asarray(0.02 * rng.normal(size=shape), jnp.float32))


def sides(estimator: str, rlax: Any) -> dict[str, Callable[..., Targets]]:
    """Name -> function of the `inputs`, batched; the peer's result in our terms."""

    def peer_gae(rewards: jax.Array, values: jax.Array, discounts: jax.Array, decisions: jax.Array) -> Targets:
        del decisions
        following = jnp.append(values, 0.0)
        advantages = rlax.truncated_generalized_advantage_estimation(
            rewards, discounts, _TRACE_DECAY, following, stop_target_gradients=True
        )
        return Targets(advantages=advantages, values=advantages + values)

    def peer_vtrace(
        rewards: jax.Array, values: jax.Array, discounts: jax.Array, decisions: jax.Array, log_rhos: jax.Array
    ) -> Targets:
        del decisions
        following = jnp.append(values[1:], 0.0)
        out = rlax.vtrace_td_error_and_advantage(values, following, rewards, discounts, jnp.exp(log_rhos), _TRACE_DECAY)
        return Targets(advantages=out.pg_advantage, values=out.errors + values)

    known: dict[str, tuple[Callable[..., Targets], Callable[..., Targets]]] = {
        "gae": (peer_gae, generalized_advantages),
        "vtrace": (peer_vtrace, vtrace),
    }
    peer, ours = known[estimator]
    return {
        PEER: jax.vmap(peer),
        **{form: jax.vmap(functools.partial(ours, trace_decay=_TRACE_DECAY, method=form)) for form in FORMS},
    }


def check(results: Mapping[str, Targets], what: str) -> dict[str, float]:
    """Form -> largest difference from the peer in advantages and values, relative to the peer's largest magnitude.

    Raises:
      BenchmarkError: a difference is above the tolerance or not finite.
    """
    differences = {PEER: 0.0}
    for form in FORMS:
        for field in ("advantages", "values"):
            expected = np.asarray(getattr(results[PEER], field), np.float64)
            got = np.asarray(getattr(results[form], field), np.float64)
            difference = float(np.abs(got - expected).max() / np.abs(expected).max())
            if not difference <= TOLERANCE:
                raise BenchmarkError(
                    f"{what}: the {form} form's {field} differ from {PEER}'s by {difference:.2e} of the largest "
                    f"magnitude, allowed is {TOLERANCE:g}"
                )
            differences[form] = max(difference, differences.get(form, 0.0))
    return differences


def _rows(case: Case, samples: Mapping[str, Samples], on_platform: str) -> list[Row]:
    peer = samples[PEER].cost_s(on_platform)
    return [
        Row(
            estimator=case.estimator,
            length=case.length,
            form=form,
            difference=case.differences[form],
            compile_s=side.compile_s,
            cost_s=spread(samples[form].cost_s(on_platform)),
            wall_s=spread(samples[form].wall_s),
            peer_over_this=ratio(peer, samples[form].cost_s(on_platform)),
        )
        for form, side in case.sides.items()
    ]


def _choice(length: int, samples: Sequence[Mapping[str, Samples]], on_platform: str) -> Choice:
    def together(form: Form) -> list[float]:
        costs = (of_estimator[form].cost_s(on_platform) for of_estimator in samples)
        return [sum(of_round) for of_round in zip(*costs, strict=True)]

    quotient = ratio(together("sequential"), together("associative"))
    return Choice(length, "associative" if quotient.median > 1 else "sequential", quotient)


def associative_from(choices: Sequence[Choice]) -> int | None:
    """Shortest measured length from which on the associative form is always the faster one; None if there is none.

    Args:
      choices: by rising length.
    """
    shortest = None
    for choice in reversed(choices):
        if choice.faster != "associative":
            break
        shortest = choice.length
    return shortest


def _show(out: Console, rows: Sequence[Row], choices: Sequence[Choice], on_platform: str) -> None:
    for estimator in ESTIMATORS:
        out.print(_table(estimator, [row for row in rows if row.estimator == estimator], on_platform))
    largest = max(row.difference for row in rows)
    out.print(f"results agree: they differ by {largest:.1e} of the largest magnitude, allowed is {TOLERANCE:g}")
    for choice in choices:
        quotient = choice.sequential_over_associative.show()
        out.print(f"T = {choice.length}: take {choice.faster}; sequential / associative = {quotient}")
    shortest = associative_from(choices)
    advice = f"= {shortest}" if shortest else f"is above {choices[-1].length}, the longest measured"
    out.print(f'ASSOCIATIVE_FROM["{on_platform}"] {advice}', markup=False, highlight=False)


def _table(estimator: str, rows: Sequence[Row], on_platform: str) -> Table:
    cost = cost_name(on_platform)
    table = Table(title=f"{estimator}: median (10th-90th percentile)", title_justify="left")
    table.add_column("T", justify="right")
    table.add_column("form")
    for heading in (f"{cost}, ms", "wall time, ms", f"{PEER}'s {cost} / this", "compilation, s"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row.length),
            row.form,
            row.cost_s.show(scale=1e3),
            row.wall_s.show(scale=1e3),
            row.peer_over_this.show(),
            f"{row.compile_s:.2f}",
            end_section=row.form == FORMS[-1],
        )
    return table


def load_rlax() -> Any:
    """The module `rlax`, installed first where it is missing.

    Raises:
      BenchmarkError: it can neither be imported nor installed.
    """
    folder = peers_folder() / PEER
    try:
        try:
            return _import_peer()
        except ModuleNotFoundError:
            if not folder.is_dir():
                _install_peer(folder)
        # At the end of the path: whatever Weir itself uses comes from Weir's environment.
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        importlib.invalidate_caches()
        return _import_peer()
    except (ImportError, AttributeError) as error:  # the latter where JAX has dropped a name that the peer uses
        raise BenchmarkError(
            f"{PEER} does not import with jax {jax.__version__}: {error}; if it comes from {folder}, remove that folder"
        ) from error


def _import_peer() -> Any:
    with warnings.catch_warnings():
        # TensorFlow Probability, which rlax loads through distrax, asks for names that JAX has deprecated.
        warnings.simplefilter("ignore")
        return importlib.import_module(PEER)


def _install_peer(folder: Path) -> None:
    """Installs with pip into a folder of its own, which appears only when complete."""
    print(f"installing {PEER} into {folder} ...", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        # --no-deps: of JAX and NumPy there must be one only, Weir's.
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*command, "--target", f"{partial}/{PEER}", *_pinned(_PEER_PACKAGES)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
            reason = said[-1].removeprefix("ERROR: ") if said else f"pip ended with status {done.returncode}"
            raise BenchmarkError(f"{PEER} is missing and could not be installed: {reason}; try: pip install {PEER}")
        os.rename(f"{partial}/{PEER}", folder)


def _pinned(names: Sequence[str]) -> list[str]:
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", _REQUIREMENTS.read_text(), re.MULTILINE))
    return [f"{name}=={pins[name]}" for name in names]
