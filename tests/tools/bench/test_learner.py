"""The learner benchmark: what it feeds to every side, that it compares before it times, and what it concludes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from learner_jax.batches.packing import Lengths, plan_rows
from learner_jax.models import merge
from learner_jax.models.flops import train_step_flops
from tools.bench import BenchmarkError
from tools.bench.__main__ import main
from tools.bench.learner import command as learner
from tools.bench.learner import gpu as learner_gpu
from tools.bench.learner import head as learner_head
from tools.bench.learner import peers
from tools.bench.learner import sides as learner_sides
from tools.bench.learner import worker as learner_worker
from tools.bench.learner.cases import (
    PaddedBatch,
    Shape,
    expected,
    lognormal,
    parameter_tree,
    prefix,
    uniform,
    weights,
)
from tools.bench.learner.report import Range, Row, check, rows, verdict, verdicts
from tools.bench.learner.sides import Launch, Result, Side, interleaved, parse_result, run_process, sides_of

TINY = Shape(layers=2, hidden=16, heads=2, kv_heads=1, head_dim=8, intermediate=24, vocab=37)
GOOD = Result(step_cpu_ms=200.0, step_ms=250.0, loss=0.0, kl=0.0, grad_norm=1.0, first_step_s=3.0, maxrss_mb=900.0)


def first_step(batch: PaddedBatch, name: str, **changes: float) -> Result:
    """What a side that computes correctly reports."""
    right = expected(batch)
    kl = right.kl_of_answers if name == "weir" else right.kl_of_tokens
    return dataclasses.replace(GOOD, **({"loss": right.loss, "kl": kl} | changes))


# Weights and batches.


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_drawn_in_the_peers_order(tied: bool) -> None:
    drawn = weights(dataclasses.replace(TINY, tied=tied).config(), seed=5)
    rng = np.random.default_rng(5)
    shapes = [("model.embed_tokens", 37, 16)]
    for i in range(2):
        attention = [("q_proj", 16, 16), ("k_proj", 8, 16), ("v_proj", 8, 16), ("o_proj", 16, 16)]
        shapes += [(f"model.layers.{i}.self_attn.{name}", *shape) for name, *shape in attention]
        mlp = [("gate_proj", 24, 16), ("up_proj", 24, 16), ("down_proj", 16, 24)]
        shapes += [(f"model.layers.{i}.mlp.{name}", *shape) for name, *shape in mlp]
    shapes += [] if tied else [("lm_head", 37, 16)]
    assert drawn.keys() == {f"{name}.weight" for name, *_ in shapes}
    for name, *shape in shapes:
        np.testing.assert_array_equal(drawn[f"{name}.weight"], (0.02 * rng.normal(size=shape)).astype(np.float32))


def test_weights_and_uniform_batch_are_those_of_the_peers_scripts(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(shared_data.parent / "peers"))
    peer = pytest.importorskip("peer_tunix_step")
    flags = peer.parser().parse_args([])
    batch = uniform(4096, seed=0)
    assert (flags.group, flags.beta, flags.epsilon) == (8, 0.04, 0.2)
    for name, array in peer.make_batch(flags).items():
        np.testing.assert_array_equal(getattr(batch, name), array, strict=True, err_msg=name)
    theirs = peer.hf_weights(flags)
    for name, array in weights(Shape().config(), seed=0).items():
        np.testing.assert_array_equal(theirs[name], array, strict=True, err_msg=name)
    assert expected(batch).loss == pytest.approx(0.00084972, rel=1e-5)
    assert expected(batch).kl_of_tokens == pytest.approx(0.0048950, rel=1e-5)


def test_lognormal_lengths_have_the_stated_distribution() -> None:
    batch = lognormal(4096, seed=1, batch=40_000)
    num_prompt, num_answer = batch.prompt_mask.sum(axis=1), batch.completion_mask.sum(axis=1)
    lengths = num_prompt + num_answer
    location = math.log(0.3 * 256) - 0.32

    def below(length: float) -> float:
        return statistics.NormalDist(location, 0.8).cdf(math.log(length))

    assert (lengths.min(), lengths.max()) == (8, 256)
    for length in (16, 40, 80, 160, 255):
        assert np.mean(lengths <= length) == pytest.approx(below(length + 0.5), abs=0.01)
    assert num_prompt.min() == 4
    assert num_answer.max() == 192
    free = (lengths >= 32) & (lengths <= 192)
    assert (num_prompt[free] <= lengths[free] // 4).all()
    spread = (num_prompt[free] - 4) / (lengths[free] // 4 - 4 + 1e-9)
    assert np.mean(spread[lengths[free] > 100]) == pytest.approx(0.5, abs=0.02)


def test_prompts_are_padded_at_the_left_and_answers_at_the_right_with_an_id_that_is_never_sampled() -> None:
    batch = lognormal(37, seed=0)
    assert (np.diff(batch.prompt_mask, axis=1) >= 0).all()
    assert (np.diff(batch.completion_mask, axis=1) <= 0).all()
    assert ((batch.prompt_ids == 0) == (batch.prompt_mask == 0)).all()
    assert ((batch.completion_ids == 0) == (batch.completion_mask == 0)).all()
    assert batch.num_tokens < 0.5 * batch.num_slots == 0.5 * 64 * 256


def test_prompts_of_the_prefix_case_are_the_same_within_groups_only() -> None:
    batch = prefix(4096, seed=0)
    groups = batch.prompt_ids.reshape(2, 8, 512)
    assert (groups == groups[:, :1]).all()
    assert (groups[0, 0] != groups[1, 0]).any()
    answers = batch.completion_ids
    assert len(np.unique(answers, axis=0)) == len(answers) == 16
    assert answers.shape[1] == 64


def test_advantages_have_mean_zero_and_deviation_one_within_groups() -> None:
    groups = lognormal(37, seed=2).advantages.reshape(-1, 8)
    np.testing.assert_allclose(groups.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(groups.std(axis=1), 1, atol=1e-3)


def small_batch(prompt: int = 6) -> PaddedBatch:
    """Ragged, padded more than needed, with noise that reaches beyond the clip."""
    rng = np.random.default_rng(3)
    num_prompt, num_answer = np.arange(8) % 3 + 1, np.arange(8) % 5 + 1
    prompt_mask = (np.arange(prompt) >= prompt - num_prompt[:, None]).astype(np.int32)
    answer_mask = (np.arange(9) < num_answer[:, None]).astype(np.int32)
    noise = 0.3 * rng.standard_normal((2, 8, 9)).astype(np.float32)
    return PaddedBatch(
        prompt_ids=(rng.integers(1, 37, (8, prompt)) * prompt_mask).astype(np.int32),
        prompt_mask=prompt_mask,
        completion_ids=(rng.integers(1, 37, (8, 9)) * answer_mask).astype(np.int32),
        completion_mask=answer_mask,
        advantages=rng.standard_normal(8).astype(np.float32),
        old_noise=noise[0],
        ref_noise=noise[1],
    )


def test_trimming_drops_padding_and_nothing_else(tmp_path: Path) -> None:
    batch = small_batch()
    batch.trimmed().write(tmp_path / "batch.npz")
    trimmed = PaddedBatch.read(tmp_path / "batch.npz")
    assert (trimmed.prompt_ids.shape, trimmed.completion_ids.shape) == ((8, 3), (8, 5))
    assert trimmed.flags() == ["--batch", "8", "--seq", "8", "--prompt-len", "3", "--group", "8"]
    assert dataclasses.astuple(expected(trimmed)) == pytest.approx(dataclasses.astuple(expected(batch)), rel=1e-12)
    ours, trimmed_rows = learner_worker.Rows.of(batch), learner_worker.Rows.of(trimmed)
    for field in dataclasses.fields(ours):
        np.testing.assert_array_equal(getattr(ours, field.name), getattr(trimmed_rows, field.name))


def test_expected_figures_are_those_of_a_loop_over_tokens() -> None:
    batch = small_batch()
    losses, kls, means = [], [], []
    for row in range(8):
        answer_losses, answer_kls = [], []
        for token in range(int(batch.completion_mask[row].sum())):
            ratio, advantage = math.exp(-batch.old_noise[row, token]), float(batch.advantages[row])
            clipped = min(max(ratio, 0.8), 1.2)
            log_ratio = float(batch.ref_noise[row, token])
            kl = math.exp(log_ratio) - log_ratio - 1
            answer_losses.append(-min(ratio * advantage, clipped * advantage) + 0.04 * kl)
            answer_kls.append(kl)
        losses.append(statistics.mean(answer_losses))
        means.append(statistics.mean(answer_kls))
        kls += answer_kls
    got = expected(batch)
    assert got.loss == pytest.approx(statistics.mean(losses), rel=1e-12)
    assert got.kl_of_answers == pytest.approx(statistics.mean(means), rel=1e-12)
    assert got.kl_of_tokens == pytest.approx(statistics.mean(kls), rel=1e-12)
    assert got.kl_of_tokens != pytest.approx(got.kl_of_answers, rel=1e-2)


# Weir's side.


def test_rows_join_prompt_and_answer_and_find_shared_prompts() -> None:
    batch = prefix(37, seed=0, groups=2, prompt=3, answer=2)
    joined = learner_worker.Rows.of(batch)
    np.testing.assert_array_equal(joined.tokens, np.concatenate([batch.prompt_ids, batch.completion_ids], axis=1))
    assert joined.shared.tolist() == [3] * 16
    assert joined.row_lengths() == (5, 3 + 8 * 2)
    ragged = learner_worker.Rows.of(small_batch())
    assert ragged.lengths.tolist() == [2, 4, 6, 5, 7, 4, 3, 5]
    row = small_batch()
    assert ragged.tokens[4, :7].tolist() == [*row.prompt_ids[4, 4:], *row.completion_ids[4, :5]]
    assert ragged.ref_noise[4].tolist() == [0.0, 0.0, *row.ref_noise[4, :5]]
    assert ragged.old_noise[4].tolist() == [0.0, 0.0, *row.old_noise[4, :5]]
    assert ragged.answers[4].tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert not ragged.shared.any()


def plain_grad_norm(batch: PaddedBatch) -> float:
    """By differentiating the loss over one sequence a row and all logits; prompts padded, nothing packed."""
    config = TINY.config()
    params = unflatten_dict(parameter_tree(config, weights(config, 0)), sep=".")
    joined = learner_worker.Rows.of(batch)
    tokens, answers = jnp.asarray(joined.tokens), jnp.asarray(joined.answers)[:, 1:]

    def logprobs(params: Any) -> jax.Array:
        model = merge(config, params)
        log_p = jax.nn.log_softmax(model.logits(model.hidden_states(tokens)[:, :-1]), axis=-1)
        return jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]

    base = logprobs(params)
    behavior, reference = base + joined.old_noise[:, 1:], base + joined.ref_noise[:, 1:]
    advantages = jnp.asarray(batch.advantages)[:, None]

    def loss(params: Any) -> jax.Array:
        current = logprobs(params)
        ratio = jnp.exp(current - behavior)
        gain = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages)
        to_reference = reference - current
        kl = jnp.exp(to_reference) - to_reference - 1
        return jnp.mean(jnp.sum((0.04 * kl - gain) * answers, axis=1) / jnp.sum(answers, axis=1))

    leaves = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    return float(np.sqrt(sum(float(np.sum(np.square(np.asarray(leaf, np.float64)))) for leaf in leaves)))


def test_worker_takes_the_step_that_the_formula_asks_for() -> None:
    ragged, same = small_batch(prompt=40), prefix(37, 0, groups=1, prompt=40, answer=9)
    joined = {f.name: (getattr(ragged, f.name), getattr(same, f.name)) for f in dataclasses.fields(PaddedBatch)}
    batch = PaddedBatch(**{name: np.concatenate(arrays) for name, arrays in joined.items()})
    prepared = learner_worker.prepare(learner_worker.Rows.of(batch), batch.advantages, TINY, seed=0)
    figures = learner_worker.measure(prepared.step, warmup=0, steps=2, num_tokens=batch.num_tokens)
    right = expected(batch)
    assert figures["loss"] == pytest.approx(right.loss, abs=2e-6)
    assert figures["kl"] == pytest.approx(right.kl_of_answers, rel=1e-4)
    assert figures["grad_norm"] == pytest.approx(plain_grad_norm(batch), rel=1e-4)
    assert prepared.shares_prompts
    assert prepared.num_slots == 2 * (40 + 8 * 9)
    assert figures["tokens_per_s"] == pytest.approx(1e3 * batch.num_tokens / figures["step_ms"])
    assert figures["compile_s"] > 1e-3 * figures["step_ms"]


def test_figures_are_medians_after_the_warm_up_and_of_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    walls = iter([0, 100, 200, 201, 300, 303, 400, 402])
    cpus = iter([0, 50, 60, 64, 70, 75, 80, 89])
    monkeypatch.setattr(learner_worker.time, "perf_counter", lambda: float(next(walls)))
    monkeypatch.setattr(learner_worker.time, "process_time", lambda: float(next(cpus)))
    losses = iter([0.25, 1.0, 2.0, 3.0])

    def step() -> dict[str, float]:
        return {"loss": next(losses), "kl": 0.5, "grad_norm": 2.0}

    figures = learner_worker.measure(step, warmup=1, steps=3, num_tokens=30)
    assert (figures["step_ms"], figures["step_cpu_ms"], figures["tokens_per_s"]) == (2000, 5000, 15)
    assert (figures["compile_s"], figures["loss"]) == (100, 0.25)


# Peers.


FAKE_PEER = """
import argparse, json, os

def make_batch(a):
    raise AssertionError("the script's own batch")

def main():
    p = argparse.ArgumentParser()
    p.add_argument("--seq", type=int)
    p.add_argument("--remat")
    a = p.parse_args()
    b = make_batch(a)
    cores, tokens = sorted(os.sched_getaffinity(0)), int(b["completion_mask"].sum())
    print("a line of log")
    print(json.dumps(dict(seq=a.seq, remat=a.remat, tokens=tokens, names=sorted(b), cores=cores)))
"""


def drive(script: Path, batch: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    driver = Path(learner_sides.__file__).with_name("peer_driver.py")
    command = [sys.executable, "-P", str(driver), "--script", str(script), "--batch", str(batch), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_driver_gives_the_script_our_batch_and_its_flags(tmp_path: Path) -> None:
    script, file = tmp_path / "peer.py", tmp_path / "batch.npz"
    script.write_text(FAKE_PEER)
    small_batch().write(file)
    core = min(os.sched_getaffinity(0))
    done = drive(script, file, "--core", str(core), "--", "--seq", "15", "--remat", "NONE")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "seq": 15,
        "remat": "NONE",
        "tokens": 21,
        "names": sorted(field.name for field in dataclasses.fields(PaddedBatch)),
        "cores": [core],
    }


def test_driver_refuses_a_script_that_would_measure_a_batch_of_its_own(tmp_path: Path) -> None:
    script, file = tmp_path / "peer.py", tmp_path / "batch.npz"
    script.write_text("def main():\n    print('measured')\n")
    small_batch().write(file)
    done = drive(script, file)
    assert done.returncode == 1
    assert "has no make_batch to replace" in done.stderr
    assert not done.stdout


class FakePip:
    """Makes what looks like an environment, and counts."""

    def __init__(self) -> None:
        self.calls: list[tuple[Path, tuple[str, ...]]] = []
        self.fails = False

    def __call__(self, folder: Path, requirements: Sequence[str]) -> None:
        assert not folder.exists()  # remains of an unfinished one would be mixed in
        self.calls.append((folder, tuple(requirements)))
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").touch()
        if self.fails:
            raise BenchmarkError("no network")


def test_peer_is_installed_once_below_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pip = FakePip()
    folder = tmp_path / "weir" / "peers" / "tunix"
    assert peers.environment("tunix", None, pip) == peers.environment("tunix", None, pip) == folder / "bin" / "python"
    assert pip.calls == [(folder, ("google-tunix==0.1.7", "jax==0.10.2", "flax==0.12.8"))]


def test_unfinished_or_outdated_environment_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pip = FakePip()
    pip.fails = True
    with pytest.raises(BenchmarkError, match="no network"):
        peers.environment("trl", None, pip)
    pip.fails = False
    peers.environment("trl", None, pip)
    assert len(pip.calls) == 2
    newer = peers.Peer("peer_trl_step.py", ("torch==3.0.0",))
    monkeypatch.setitem(peers.LEARNERS, "trl", newer)
    peers.environment("trl", None, pip)
    assert pip.calls[2:] == [(tmp_path / "weir" / "peers" / "trl", ("torch==3.0.0",))]


def test_given_environments_are_taken_as_they_are(tmp_path: Path) -> None:
    pip = FakePip()
    with pytest.raises(BenchmarkError, match=r"trl/bin/python expected, not there: --environments names a folder"):
        peers.environment("trl", tmp_path, pip)
    python = tmp_path / "trl" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert peers.environment("trl", tmp_path, pip) == python
    assert not pip.calls


def test_what_pip_says_is_shown_only_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = 0

    def pip(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, status, "WARNING: Location 'x' is ignored\n", None)

    monkeypatch.setattr(peers.venv, "create", lambda *_, **__: None)
    monkeypatch.setattr(peers.subprocess, "run", pip)
    peers.install_with_pip(tmp_path / "tunix", ("google-tunix==0.1.7",))
    error = capsys.readouterr().err
    assert "installing google-tunix==0.1.7 into" in error
    assert "WARNING" not in error
    status = 3
    with pytest.raises(BenchmarkError, match="could not install tunix and ended with status 3"):
        peers.install_with_pip(tmp_path / "tunix", ("google-tunix==0.1.7",))
    assert "WARNING: Location" in capsys.readouterr().err


def test_scripts_are_looked_for_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIR_PEERS", str(tmp_path))
    with pytest.raises(BenchmarkError) as missing:
        peers.scripts_folder(None, ["tunix", "trl"])
    for word in ("peer_tunix_step.py and peer_trl_step.py expected in", "--peers", "WEIR_PEERS", "--sides weir"):
        assert word in str(missing.value)
    (tmp_path / "peer_trl_step.py").touch()
    assert peers.scripts_folder(None, ["trl"]) == tmp_path
    with pytest.raises(BenchmarkError, match="expected in nowhere, not there"):
        peers.scripts_folder(Path("nowhere"), ["trl"])


# Processes.


def test_result_is_the_last_line_and_a_first_step_has_either_name() -> None:
    figures = {"step_cpu_ms": 1, "step_ms": 2, "loss": 3, "kl": 4, "grad_norm": 5, "maxrss_mb": 6, "tokens_per_s": 9}
    want = Result(step_cpu_ms=1.0, step_ms=2.0, loss=3.0, kl=4.0, grad_norm=5.0, first_step_s=7.0, maxrss_mb=6.0)
    assert parse_result("log\n" + json.dumps(figures | {"compile_s": 7}) + "\n", "x") == want
    assert parse_result(json.dumps(figures | {"first_step_s": 7}), "x") == want


@pytest.mark.parametrize(
    ("stdout", "message"),
    [
        ("", "expected a JSON line of figures at the end of trl"),
        ("done\n", r"got \['done'\]"),
        ("[1]\n", "expected a JSON line"),
        ('{"step_ms": 2, "compile_s": 1}\n', "'step_cpu_ms'"),
        (
            '{"step_cpu_ms":1,"step_ms":2,"loss":NaN,"kl":4,"grad_norm":5,"maxrss_mb":6,"compile_s":7}',
            "a figure is not finite: trl",
        ),
    ],
)
def test_output_without_figures_is_an_error(stdout: str, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        parse_result(stdout, "trl")


def test_process_that_fails_is_an_error_that_shows_why() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such flag')"]
    with pytest.raises(BenchmarkError, match=r"ended with status 1: (.|\n)*\nno such flag"):
        run_process(command, os.environ)


def test_process_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_sides, "_TIMEOUT_S", 0.2)
    with pytest.raises(BenchmarkError, match="no figures within 0 s"):
        run_process([sys.executable, "-c", "import time; time.sleep(30)"], os.environ)


def test_peers_get_the_driver_and_weir_its_worker_with_the_same_numbers(tmp_path: Path) -> None:
    launch = Launch({"trl": Path("/venv/python")}, Path("/scripts"), core=3, seed=0)
    batch, file = small_batch(), tmp_path / "b.npz"
    theirs = launch.command(Side("trl", "trl", ("--attn", "eager")), TINY, batch, file, warmup=2, steps=4)
    ours = launch.command(Side("weir", "weir"), TINY, batch, file, warmup=2, steps=4)
    assert theirs[:2] == ["/venv/python", "-P"]
    before, flags = theirs[: theirs.index("--")], theirs[theirs.index("--") + 1 :]
    assert before[3:] == ["--script", "/scripts/peer_trl_step.py", "--batch", str(file), "--core", "3"]
    assert flags[-2:] == ["--attn", "eager"]
    assert flags[flags.index("--seq") + 1] == "15"
    parsed = learner_worker.parse(ours[3:])
    assert (parsed.core, parsed.steps, parsed.hidden, parsed.vocab) == (3, 4, 16, 37)
    for flag in ("--steps", "--warmup", "--seed", "--hidden", "--vocab", "--tied"):
        assert flag in flags
        assert flag in ours


def test_sides_at_their_best_are_the_peers_on_a_trimmed_batch() -> None:
    assert [side.name for side in sides_of(["weir", "tunix", "trl"], best=False)] == ["weir", "tunix", "trl"]
    best = sides_of(["weir", "tunix", "trl"], best=True)
    assert [(side.name, side.trimmed) for side in best[3:]] == [("tunix, best", True), ("trl, best", True)]


def test_rounds_begin_with_another_side_each() -> None:
    calls: list[str] = []

    def run(side: Side) -> Result:
        calls.append(side.name)
        return dataclasses.replace(GOOD, step_ms=float(len(calls)))

    results = interleaved([Side(name, name) for name in "abc"], run, rounds=3)
    assert "".join(calls) == "abc" + "bca" + "cab"
    assert [r.step_ms for r in results["c"]] == [3.0, 5.0, 7.0]


# Agreement.


def test_sides_that_agree_pass() -> None:
    """Without which the refusals below would prove nothing."""
    batch = lognormal(37, seed=0)
    firsts = {name: first_step(batch, name) for name in ("weir", "tunix", "trl")}
    assert check(firsts, expected(batch), "lognormal") is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("name", "figure", "factor", "message"),
    [
        ("trl", "loss", 1.002, "lognormal: trl gives loss 0.0020"),
        ("weir", "loss", 1.002, "lognormal: weir gives loss 0.0020"),
        ("tunix", "kl", 1.0011, "lognormal: tunix gives KL 0.0049"),
        ("tunix", "grad_norm", 1.0011, r"lognormal: tunix gives gradient norm 1\.0011, weir 1; allowed is"),
        ("trl", "grad_norm", float("nan"), "trl gives gradient norm nan"),
    ],
)
def test_disagreement_is_an_error(name: str, figure: str, factor: float, message: str) -> None:
    batch = lognormal(37, seed=0)
    results = {side: first_step(batch, side) for side in ("weir", "tunix", "trl")}
    wrong = factor * getattr(results[name], figure)
    results[name] = dataclasses.replace(results[name], **{figure: wrong})
    with pytest.raises(BenchmarkError, match=message):
        check(results, expected(batch), "lognormal")


class FakeSides:
    """Answers commands as sides would, Weir in 100 ms of CPU time; remembers how many steps were asked for."""

    def __init__(self, **wrong: float) -> None:
        self.steps: list[int] = []
        self._wrong = wrong

    def __call__(self, command: Sequence[str], environment: Mapping[str, str]) -> Result:
        assert environment["JAX_PLATFORMS"] == "cpu"
        assert "PYTHONPATH" not in environment
        self.steps.append(int(command[command.index("--steps") + 1]))
        batch = PaddedBatch.read(Path(command[command.index("--batch") + 1]))
        name = next((name for name in ("tunix", "trl") if any(f"peer_{name}_step" in part for part in command)), "weir")
        wrong = self._wrong if name == "trl" else {}
        cpu = {"weir": 100.0, "tunix": 400.0, "trl": 150.0}[name]
        return first_step(batch, name, step_cpu_ms=cpu, **wrong)


@pytest.fixture
def peers_there(tmp_path: Path) -> list[str]:
    for name in ("tunix", "trl"):
        (tmp_path / f"peer_{name}_step.py").touch()
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "python").touch()
    return ["--peers", str(tmp_path), "--environments", str(tmp_path)]


CASES = ["--cases", "uniform", "lognormal", "prefix"]


def test_whole_command_writes_tables_aims_and_figures(
    peers_there: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = FakeSides()
    monkeypatch.setattr(learner, "run_process", sides)
    path = tmp_path / "learner.json"
    assert main(["learner", *CASES, *peers_there, "--rounds", "2", "--steps", "4", "--json", str(path)]) == 0
    processes = 3 + 5 + 3
    assert sides.steps == [1] * processes + [4] * (2 * processes)
    out = capsys.readouterr().out
    for line in (
        "uniform: 0.25x Tunix's CPU time (aim <= 0.8): met",
        "uniform: 0.67x TRL's CPU time (aim <= 0.6): NOT met",
        "lognormal: 4.00x as fast as Tunix by CPU time (aim >= 2.5): met",
        "lognormal: 1.50x as fast as TRL by CPU time (aim >= 2.5): NOT met",
        "lognormal: 1.50x as fast as TRL at its best flags by CPU time (aim >= 1.15): met",
        "prefix: 1.50x as fast as TRL by CPU time (aim >= 3): NOT met",
    ):
        assert line in out
    record = json.loads(path.read_text())
    assert (record["schema"], record["benchmark"]) == ("weir-bench/1", "learner")
    assert record["settings"]["peers"]["trl"][0] == "torch==2.13.0"
    assert len(record["results"]["rounds"]["lognormal"]["trl, best"]) == 2
    row = record["results"]["rows"][1]
    assert (row["case"], row["side"]) == ("uniform", "tunix")
    assert row["peer_over_weir"] == {"median": 4.0, "minimum": 4.0, "maximum": 4.0}
    assert row["tokens_per_s"]["median"] == pytest.approx(4096 / 0.25)
    assert sum(not aim["met"] for aim in record["results"]["aims"]) == 3


def test_nothing_is_timed_when_sides_disagree(
    peers_there: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = FakeSides(grad_norm=1.01)
    monkeypatch.setattr(learner, "run_process", sides)
    assert main(["learner", *CASES, *peers_there, "--steps", "4"]) == 1
    assert set(sides.steps) == {1}
    assert "error: uniform: trl gives gradient norm 1.01" in capsys.readouterr().err


def test_weir_alone_needs_no_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learner, "run_process", FakeSides())
    monkeypatch.setenv("WEIR_PEERS", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["learner", "--sides", "weir", "--cases", "uniform", "--rounds", "1"]) == 0
    assert "aim" not in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()


# Conclusions.


def test_quotients_are_taken_within_a_round() -> None:
    def rounds(*cpu: float) -> list[Result]:
        return [dataclasses.replace(GOOD, step_cpu_ms=ms) for ms in cpu]

    ours, theirs = rows("uniform", {"weir": rounds(100, 300, 100), "trl": rounds(200, 300, 400)}, num_tokens=500)
    assert theirs.peer_over_weir == Range(median=2.0, minimum=1.0, maximum=4.0)  # of the medians it would be 3
    assert (theirs.cpu_ms.show(), ours.peer_over_weir) == ("300 (200-400)", Range(1.0, 1.0, 1.0))
    assert theirs.tokens_per_s.median == pytest.approx(2000)
    alone = rows("uniform", {"trl": rounds(1)}, num_tokens=1)
    assert alone[0].peer_over_weir is None


@pytest.mark.parametrize(
    ("case", "side", "quotient", "met"),
    [
        ("uniform", "tunix", 1 / 0.79, True),
        ("uniform", "tunix", 1 / 0.81, False),
        ("uniform", "trl", 1 / 0.61, False),
        ("lognormal", "trl", 2.51, True),
        ("lognormal", "tunix, best", 1.14, False),
        ("prefix", "tunix", 2.9, False),
        ("prefix", "trl", 3.1, True),
    ],
)
def test_aims_are_met_on_their_right_side(case: str, side: str, quotient: float, met: bool) -> None:
    figure = Range(1.0, 1.0, 1.0)
    row = Row(case, side, figure, figure, figure, figure, figure, Range(quotient, 0.0, 99.0))
    (found,) = verdicts([row])
    assert found.met == met
    assert found.line.endswith(": met") == met


def test_verdict_says_measured_aim_and_outcome() -> None:
    assert verdict("head", "x", "0.2x", 0.2, 0.125, at_most=True).line == "head: 0.2x (aim <= 0.125): NOT met"


# The head.


def test_heads_agree_and_the_fused_one_holds_no_logits() -> None:
    heads = {name: learner_head.run_head(name, tokens=8192, vocab=2048, hidden=8) for name in ("fused", "naive")}
    learner_head.check(heads["fused"], heads["naive"])
    assert heads["naive"].grad_norm > 1
    logits_mb = 4 * 8192 * 2048 / 2**20
    assert heads["naive"].compiled_mb >= logits_mb
    assert heads["fused"].compiled_mb < 0.5 * logits_mb  # an eighth of the tokens at a time


def test_heads_that_disagree_are_an_error() -> None:
    memory = learner_head.Memory(compiled_mb=1.0, maxrss_mb=1.0, loss=10.0, grad_norm=3.0)
    with pytest.raises(BenchmarkError, match=r"grad_norm of the fused head is 3\.001, of the naive one 3"):
        learner_head.check(dataclasses.replace(memory, grad_norm=3.001), memory)


def test_head_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_head, "_available_mb", lambda: 1.0)
    with pytest.raises(BenchmarkError, match=r"the naive head needs \d+ MiB, 1 are free"):
        learner_head.run_head("naive", tokens=1024, vocab=512, hidden=8)


def test_head_aim_is_held_against_both_measures() -> None:
    def memory(compiled: float, rss: float) -> learner_head.Memory:
        return learner_head.Memory(compiled, rss, loss=1.0, grad_norm=1.0)

    first, second = learner_head.verdicts({"fused": memory(100, 300), "naive": memory(900, 1500)})
    assert first.line == "head: 0.111x the naive head's compiled memory (100 of 900 MiB) (aim <= 0.125): met"
    assert second.line == "head: 0.200x the naive head's peak RSS (300 of 1500 MiB) (aim <= 0.125): NOT met"


# The GPU.


def test_flops_of_a_step_count_real_tokens() -> None:
    lengths = [5, 3, 9]
    plan = plan_rows(Lengths.of(lengths), width=9, row_lengths=(16,))
    layer_parameters = 2 * (16 * 16 + 2 * 8 * 16 + 16 * 16 + 3 * 16 * 24)
    # A token sees itself too: n (n + 1) / 2 pairs, n^2 / 2 up to a share of 1 / n.
    pairs = sum(n * (n + 1) / 2 for n in lengths)
    want = 6 * layer_parameters * 17 + 6 * 37 * 16 * 7 + 12 * 2 * (2 * 8) * pairs
    assert train_step_flops(TINY.config(), plan.layout, num_scored=7) == pytest.approx(want)


def test_utilisation_is_the_share_of_the_peak() -> None:
    assert learner_gpu.utilisation(model_flops=6e14, step_s=2.0, peak_flops=6e14) == 0.5


def test_models_have_the_sizes_of_their_names() -> None:
    for name, billions in (("Qwen3-1.7B", 1.72), ("Qwen3-4B", 4.02), ("Qwen3-8B", 8.19)):
        config = learner.MODELS[name].config()
        sizes = [
            math.prod(row.shape) * (config.num_layers if row.stacked else 1)
            for row in learner_gpu.flops.parameters(config)
        ]
        assert sum(sizes) / 1e9 == pytest.approx(billions, abs=0.01)


def test_gpu_lengths_nearly_fill_the_rows() -> None:
    lengths, prompts = learner_gpu.lengths_of(rows=64, seed=0)
    assert len(lengths) % 8 == 0
    assert 0.7 < lengths.sum() / (64 * 8192) <= 1.0
    assert (prompts < lengths).all()


def test_without_a_gpu_the_gpu_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learner", "--device", "gpu", "--model", "Qwen3-4B"]) == 1
    assert "error: --device gpu needs an NVIDIA GPU that JAX sees, got platform cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "unifrom"], "argument --cases: invalid choice: 'unifrom' (choose from"),
        (["--sides", "verl"], "argument --sides: invalid choice: 'verl'"),
        (["--rounds", "0"], "--rounds: expected a whole number of at least 1, got '0'"),
        (["--steps", "x"], "--steps: expected a whole number of at least 1, got 'x'"),
        (["--core", "4096"], "--core 4096: expected one of 0"),
        (["--model", "Qwen3-4B"], "--model and --rows are for --device gpu"),
        (["--device", "gpu", "--model", "Qwen3-9B"], "argument --model: invalid choice: 'Qwen3-9B'"),
        (["--json", "nowhere/x.json"], "--json: expected a file in an existing folder, got 'nowhere/x.json'"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["learner", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_missing_scripts_are_an_error_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: Any) -> Result:
        raise AssertionError("ran without its peers")

    monkeypatch.setattr(learner, "run_process", run)
    assert main(["learner", "--peers", str(tmp_path), "--cases", "uniform"]) == 1
    assert f"error: peer_tunix_step.py and peer_trl_step.py expected in {tmp_path}" in capsys.readouterr().err
