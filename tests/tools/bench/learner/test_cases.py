"""What the learner benchmark feeds to every side."""

from __future__ import annotations

import dataclasses
import math
import statistics
from pathlib import Path

import numpy as np
import pytest

from tests.support.bench_batches import TINY, small_batch
from tools.bench.learner import worker
from tools.bench.learner.cases import PaddedBatch, Shape, expected, lognormal, prefix, uniform, weights


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


def test_trimming_drops_padding_and_nothing_else(tmp_path: Path) -> None:
    batch = small_batch()
    batch.trimmed().write(tmp_path / "batch.npz")
    trimmed = PaddedBatch.read(tmp_path / "batch.npz")
    assert (trimmed.prompt_ids.shape, trimmed.completion_ids.shape) == ((8, 3), (8, 5))
    assert trimmed.flags() == ["--batch", "8", "--seq", "8", "--prompt-len", "3", "--group", "8"]
    assert dataclasses.astuple(expected(trimmed)) == pytest.approx(dataclasses.astuple(expected(batch)), rel=1e-12)
    ours, trimmed_rows = worker.Rows.of(batch), worker.Rows.of(trimmed)
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
