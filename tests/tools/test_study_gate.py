"""The study of the gate: candidates of known quality, the power calculation beside real gates, and its page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from serving_bridge.settings import ServingSettings
from tests.support.letters import letter_model
from tools.gating import stop_probability
from tools.shares import wilson
from tools.study import gate_pools
from tools.study.gate import GateCell, gate_cells, power_of, run_cell, stopped_share, versions_of, write_gate_report
from tools.study.gate_pools import GateStudy, Pool, asked_pools, drawn_from, noised
from tools.study.records import StudyError, finished, unfinished

STUDY = GateStudy(problems=200, answers=20)


@pytest.fixture(scope="module")
def pools() -> list[Pool]:
    """Stable is right in 70%, by problem between 40% and 100%; the copy in 35%."""
    rng = np.random.default_rng(3)
    rates = rng.uniform(0.4, 1.0, STUDY.problems)[:, None]
    draws = rng.random((2, STUDY.problems, STUDY.answers))
    return [Pool("stable", draws[0] < rates), Pool("noise 0.3", draws[1] < rates / 2)]


def test_mixtures_are_worse_by_exact_amounts(pools: list[Pool]) -> None:
    versions = versions_of(pools, STUDY)
    stable = pools[0].passed.mean(1)
    worse = [float((stable - version.rates).mean()) for version in versions]
    assert worse[:5] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2], abs=1e-12)
    assert np.array_equal(versions[0].rates, stable), "the first is as good as stable, problem by problem"
    assert worse[5] == pytest.approx(pools[0].accuracy - pools[1].accuracy)
    assert all(version.rates.min() >= 0 and version.rates.max() <= 1 for version in versions)
    with pytest.raises(StudyError, match=r"worse by 0\.000, expected at least 0\.2"):
        versions_of([pools[0], replace(pools[0], name="noise 0")], STUDY)


def test_the_calculation_is_what_real_gates_do(pools: list[Pool], tmp_path: Path) -> None:
    """Gates are held by the gate's own code, on answers that are drawn independently of the calculation."""
    versions = {version.name: version for version in versions_of(pools, STUDY)}
    for name, rounds in (("0.5 margins", 1), ("1 margins", 1), ("1 margins", 3)):
        cell = GateCell(name, rounds, 0, 250)
        assert run_cell(tmp_path, STUDY, pools, cell) == cell
        (record,) = (one for known, one in finished(tmp_path, STUDY, GateCell).items() if known == cell)
        stopped = sum(not one["passed"] for one in record["outcomes"])
        low, high = wilson(stopped, cell.gates)
        assert low <= stopped_share(power_of(pools, versions[name]), STUDY, rounds) <= high
        assert {one["rounds"] for one in record["outcomes"]} == set(range(1, rounds + 1))


def test_the_spread_of_a_gate_is_that_of_its_draws(pools: list[Pool]) -> None:
    power = power_of(pools, versions_of(pools, STUDY)[2])
    rng, rates = np.random.default_rng(0), versions_of(pools, STUDY)[2].rates
    stable = pools[0].passed.mean(1)
    problems = rng.integers(stable.size, size=(4000, STUDY.asked))
    samples = 2 * STUDY.samples
    drawn = rng.binomial(samples, rates[problems]) - rng.binomial(samples, stable[problems])
    means = (drawn / samples).mean(1)
    assert means.mean() == pytest.approx(-STUDY.margin, abs=0.003)
    assert power.error(STUDY, 2) == pytest.approx(means.std(), rel=0.05)


def test_one_round_is_the_formula_that_reports_use(pools: list[Pool]) -> None:
    power = power_of(pools, versions_of(pools, STUDY)[2])
    assert stopped_share(power, STUDY, 1) == pytest.approx(STUDY.confidence), "at the margin one in twenty passes"
    equal = power_of(pools, versions_of(pools, STUDY)[0])
    formula = stop_probability(0.0, STUDY.margin, equal.error(STUDY, 1), confidence=STUDY.confidence)
    assert stopped_share(equal, STUDY, 1) == formula


def test_a_page_is_written_from_finished_cells(pools: list[Pool], tmp_path: Path) -> None:
    study = replace(STUDY, drawn_from=drawn_from(pools))
    wanted = gate_cells(versions_of(pools, study), 4)
    with pytest.raises(StudyError, match="12 of 12 cells are not finished"):
        write_gate_report(tmp_path, pools, wanted, study, tmp_path)
    for cell in unfinished(tmp_path, wanted, study):
        run_cell(tmp_path, study, pools, cell)
    assert unfinished(tmp_path, wanted, study) == []
    text = write_gate_report(tmp_path, pools, wanted, study, tmp_path).read_text()
    assert "| 2 margins | 0.200 | 4 | 100.0% (51.0% to 100.0%) | 100.0% | yes | 1.00 |" in text
    assert "of 12 calculated shares lie in the measured interval" in text
    assert (tmp_path / "gate.svg").read_text().startswith("<?xml")
    others = [pools[0], replace(pools[1], passed=~pools[1].passed)]
    assert unfinished(tmp_path, wanted, replace(study, drawn_from=drawn_from(others))) == wanted


def test_noise_is_a_part_of_each_tensors_own_spread(tmp_path: Path) -> None:
    model = tmp_path / "model"
    letter_model(model, 0)
    noised(model, tmp_path / "copy", 0.25, seed=1)
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "copy"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if tensor.size > 1000:
            assert (after[name] - tensor).std() == pytest.approx(0.25 * tensor.std(), rel=0.1)
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_answers_are_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_pools, "NOISES", (0.5,))
    study = GateStudy(problems=4, answers=2)
    serving = ServingSettings(server_module="tools.testing.fake_vllm.server", max_model_len=64, dtype="float32")
    said: list[str] = []
    model = tmp_path / "model"
    letter_model(model, 0)
    first = asked_pools(model, tmp_path / "out", study, serving=serving, say=said.append)
    assert [(pool.name, pool.passed.shape) for pool in first] == [("stable", (4, 2)), ("noise 0.5", (4, 2))]
    assert said.count("starting vLLM") == 2
    again = asked_pools(model, tmp_path / "out", study, serving=serving, say=said.append)
    assert drawn_from(again) == drawn_from(first)
    assert said.count("starting vLLM") == 2
    assert not list((tmp_path / "out" / "models").iterdir()), "copies do not stay"
