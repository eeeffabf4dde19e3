"""The benchmarks: what they refuse, what they write, and that they time what they say they time."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.losses.returns import Targets
from tools.bench import BenchmarkError, timing
from tools.bench.__main__ import main
from tools.bench.learner import losses

SHORT = ["losses", "--batch", "3", "--lengths", "16", "5", "--repeats", "2"]


@pytest.fixture
def rlax() -> Any:
    try:
        return losses.load_rlax()
    except BenchmarkError as error:
        pytest.skip(str(error))


class FakeTime:
    """A clock that only work moves; the CPU works on two threads of it."""

    def __init__(self) -> None:
        self.now = 100.0

    def clocks(self) -> timing.Clocks:
        return timing.Clocks(cpu=lambda: 2 * self.now, wall=lambda: self.now)

    def work(self, *seconds: float) -> Callable[[], None]:
        """Takes these seconds, call by call, and the last of them for ever."""
        left = list(seconds)

        def run() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_spread_is_median_and_tenth_and_ninetieth_percentile() -> None:
    assert timing.spread([11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) == timing.Spread(median=6.0, p10=2.0, p90=10.0)


def test_ratio_is_taken_round_by_round() -> None:
    assert timing.ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]).median == 2.0  # of the medians it would be 1


def test_ratio_refuses_unequal_rounds() -> None:
    with pytest.raises(ValueError, match="shorter"):
        timing.ratio([1.0, 2.0], [1.0])


def test_spread_shows_significant_digits() -> None:
    assert timing.Spread(0.0123456, 0.001, 12.3456).show(scale=1e3) == "12.3 (1.00-12346)"


def test_samples_hold_each_sides_own_seconds_without_the_first_call() -> None:
    fake = FakeTime()
    samples = timing.interleaved(
        {"slow": fake.work(50.0, 3.0), "fast": fake.work(70.0, 1.0)}, repeats=3, min_sample_s=0.5, clocks=fake.clocks()
    )
    assert samples["slow"] == timing.Samples(cpu_s=(6.0,) * 3, wall_s=(3.0,) * 3)
    assert samples["fast"] == timing.Samples(cpu_s=(2.0,) * 3, wall_s=(1.0,) * 3)


def test_rounds_are_interleaved_and_start_with_another_side_each() -> None:
    calls: list[str] = []
    fake = FakeTime()

    def side(name: str) -> Callable[[], None]:
        work = fake.work(1.0)

        def run() -> None:
            calls.append(name)
            work()

        return run

    timing.interleaved({name: side(name) for name in "abc"}, repeats=4, min_sample_s=0.5, clocks=fake.clocks())
    warmup = 2 * 3
    assert "".join(calls[warmup:]) == "abc" + "bca" + "cab" + "abc"


def test_short_work_is_repeated_within_a_sample_and_timed_per_call() -> None:
    fake = FakeTime()
    calls = 0
    work = fake.work(0.01)

    def run() -> None:
        nonlocal calls
        calls += 1
        work()

    samples = timing.interleaved({"a": run}, repeats=2, min_sample_s=0.095, clocks=fake.clocks())
    assert calls == 2 + 2 * 10
    np.testing.assert_allclose(samples["a"].wall_s, [0.01, 0.01], rtol=1e-9)
    np.testing.assert_allclose(samples["a"].cpu_s, [0.02, 0.02], rtol=1e-9)


def test_cost_is_cpu_time_on_a_cpu_and_elapsed_time_elsewhere() -> None:
    samples = timing.Samples(cpu_s=(1.0,), wall_s=(2.0,))
    assert samples.cost_s("cpu") == (1.0,)
    assert samples.cost_s("gpu") == samples.cost_s("tpu") == (2.0,)


def test_measuring_compiles_nothing() -> None:
    traced = 0

    def double(x: Any) -> Any:
        nonlocal traced
        traced += 1
        return 2 * x

    x = jnp.ones(3)
    built = timing.compiled(double, x)
    timing.interleaved({"a": lambda: built.run(x)}, repeats=2, min_sample_s=0.0)
    assert traced == 1
    assert built.compile_s > 0


def test_short_form_writes_every_figure(rlax: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "losses.json"
    assert main([*SHORT, "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    assert (record["schema"], record["benchmark"]) == ("weir-bench/1", "losses")
    assert record["settings"] == {"batch": 3, "lengths": [5, 16], "repeats": 2, "dtype": "float32"}
    assert {"cpu", "cores", "platform", "jax", "date"} <= record["hardware"].keys()
    results = record["results"]
    assert results["peer"] == f"rlax {rlax.__version__}"
    assert [(row["estimator"], row["length"], row["form"]) for row in results["rows"]] == [
        (estimator, length, form)
        for length in (5, 16)
        for estimator in ("gae", "vtrace")
        for form in ("rlax", "sequential", "associative")
    ]
    for row in results["rows"]:
        assert row["compile_s"] > 0
        assert 0 <= row["difference"] <= 1e-5
        for spread in (row["cost_s"], row["wall_s"], row["peer_over_this"]):
            assert 0 < spread["p10"] <= spread["median"] <= spread["p90"] < math.inf
    assert [choice["length"] for choice in results["choices"]] == [5, 16]
    for choice in results["choices"]:
        faster = choice["sequential_over_associative"]["median"] > 1
        assert choice["faster"] == ("associative" if faster else "sequential")
    assert 'ASSOCIATIVE_FROM["cpu"]' in capsys.readouterr().out


@pytest.mark.parametrize("estimator", ["gae", "vtrace"])
@pytest.mark.parametrize("field", ["advantages", "values"])
def test_disagreement_with_the_peer_fails_before_anything_is_measured(
    rlax: Any,
    estimator: str,
    field: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = {"gae": "generalized_advantages", "vtrace": "vtrace"}[estimator]
    right = getattr(losses, name)

    def wrong(*arguments: Any, method: str, **settings: Any) -> Targets:
        targets = right(*arguments, method=method, **settings)
        scale = 1 + 1e-4 * (method == "associative")
        return targets._replace(**{field: scale * getattr(targets, field)})

    def measure(*_: Any, **__: Any) -> None:
        raise AssertionError("measured in spite of a disagreement")

    monkeypatch.setattr(losses, name, wrong)
    monkeypatch.setattr(losses, "interleaved", measure)
    path = tmp_path / "losses.json"
    assert main([*SHORT, "--json", str(path)]) == 1
    error = capsys.readouterr().err
    assert f"error: {estimator} at T = 5: the associative form's {field} differ from rlax's by 1.0" in error
    assert not path.exists()


@pytest.mark.parametrize(("factor", "agrees"), [(1 + 0.9e-5, True), (1 + 1.1e-5, False), (np.nan, False)])
def test_tolerance_is_relative_to_the_largest_magnitude(factor: float, agrees: bool) -> None:
    def targets(small: float, last: float) -> Targets:
        return Targets(advantages=np.array([small, last]), values=np.array([small, 50.0]))

    right = targets(1e-9, -20.0)
    results = {"rlax": right, "sequential": right, "associative": targets(2e-9, -20.0 * factor)}
    if agrees:
        assert losses.check(results, "gae")["associative"] == pytest.approx(0.9e-5)
    else:
        with pytest.raises(BenchmarkError, match="the associative form's advantages differ"):
            losses.check(results, "gae")


def test_choice_adds_both_estimators_within_each_round() -> None:
    def estimator(sequential: tuple[float, ...], associative: tuple[float, ...]) -> dict[str, timing.Samples]:
        zeros = (0.0,) * len(sequential)
        return {
            "sequential": timing.Samples(sequential, zeros),
            "associative": timing.Samples(associative, zeros),
        }

    samples = [estimator((1.0, 1.0, 9.0), (2.0, 2.0, 2.0)), estimator((1.0, 5.0, 1.0), (1.0, 1.0, 1.0))]
    choice = losses._choice(8, samples, "cpu")
    assert choice.faster == "associative"
    assert choice.sequential_over_associative.median == pytest.approx(2.0)  # of 2/3, 6/3 and 10/3


@pytest.mark.parametrize(
    ("faster", "expected"), [("sss", None), ("ssa", 300), ("saa", 20), ("aaa", 1), ("asa", 300), ("aas", None)]
)
def test_associative_from_is_where_it_stays_faster(faster: str, expected: int | None) -> None:
    forms = {"s": "sequential", "a": "associative"}
    choices = [
        losses.Choice(length, forms[letter], timing.Spread(1, 1, 1))
        for length, letter in zip((1, 20, 300), faster, strict=True)
    ]
    assert losses.associative_from(choices) == expected


def test_unknown_benchmark_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["lossses"])
    assert stop.value.code == 2
    assert "invalid choice: 'lossses' (choose from" in (error := capsys.readouterr().err)
    assert "losses" in error.rpartition("choose from")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch: expected a whole number of at least 1, got '0'"),
        (["--repeats", "-3"], "--repeats: expected a whole number of at least 1, got '-3'"),
        (["--lengths", "256", "4k"], "--lengths: expected a whole number of at least 1, got '4k'"),
        (["--json", "nowhere/losses.json"], "--json: expected a file in an existing folder, got 'nowhere/losses.json'"),
        (["--lengths"], "expected at least one argument"),
        (["--faster"], "unrecognized arguments: --faster"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["losses", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_peer_that_cannot_be_installed_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rlax", None)  # makes `import rlax` fail as if it were missing
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for setting, value in {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1"}.items():
        monkeypatch.setenv(setting, value)
    assert main(SHORT) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: rlax is missing and could not be installed: ")
    assert not list((tmp_path / "weir" / "peers").iterdir())


def test_missing_peer_is_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        target = Path(command[command.index("--target") + 1])
        target.mkdir()
        (target / "weir_fake_peer.py").write_text("answer = 42\n")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(losses, "PEER", "weir_fake_peer")
    monkeypatch.setattr(losses.subprocess, "run", pip)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        assert losses.load_rlax().answer == 42
        del sys.modules["weir_fake_peer"]
        sys.path.remove(str(tmp_path / "weir" / "peers" / "weir_fake_peer"))
    assert len(commands) == 1
    assert "--no-deps" in commands[0]


def test_peer_that_does_not_fit_this_jax_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weir_broken_peer.py").write_text("import jax\njax.a_name_that_was_dropped\n")
    monkeypatch.setattr(losses, "PEER", "weir_broken_peer")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BenchmarkError, match=r"weir_broken_peer does not import with jax \d.*a_name_that_was_dropped"):
        losses.load_rlax()


def test_every_package_of_the_peer_is_pinned() -> None:
    pins = losses._pinned(losses._PEER_PACKAGES)
    assert [pin.partition("==")[0] for pin in pins] == list(losses._PEER_PACKAGES)
    assert all(pin.partition("==")[2][0].isdigit() for pin in pins)
