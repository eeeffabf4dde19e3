"""The prediction of device memory by hand, for a model small enough: shapes alone, nothing is compiled."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from learner_jax.models import abstract_parameters
from learner_jax.settings import LearnerSettings
from learner_jax.training import memory, temporaries
from learner_jax.training.memory_plan import Plan, Program, Tenant
from learner_jax.training.temporaries import MAX_SEGMENTS, Share, _Arrays
from tests.support.decoders import tiny_config

MODEL = dataclasses.replace(
    tiny_config(), vocab_size=64, hidden_size=32, intermediate_size=48, num_heads=4, num_kv_heads=2, head_dim=16
)


def settings(**changed: Any) -> LearnerSettings:
    whole = {"steps": 1, "groups_per_step": 4, "sequence_length": 8, "microbatch_rows": 8} | changed
    return LearnerSettings.model_validate(whole)


def share(**changed: Any) -> Share:
    return dataclasses.replace(Share(MODEL, rows=2, row_tokens=8, item=2, attention_item=4), **changed)


def sizes(tenants: Any) -> dict[str, int]:
    return {tenant.name: tenant.size for tenant in tenants}


def test_a_plan_is_as_full_as_its_fuller_program() -> None:
    one = Program("a", (Tenant("x", 5, ""), Tenant("y", 3, "", fusible=True)), (Tenant("z", 2, ""),), "")
    other = Program(
        "b", (Tenant("x", 4, ""), Tenant("y", 1, "", fusible=True)), (Tenant("z", 4, "", fusible=True),), ""
    )
    assert (one.own_bytes, one.total_bytes, one.fused_bytes) == (8, 10, 7)
    assert (other.own_bytes, other.total_bytes, other.fused_bytes) == (5, 9, 8)
    for plan in (Plan(1, 1, one, other), Plan(1, 1, other, one)):
        assert (plan.peak_bytes, plan.fused_peak_bytes) == (10, 8)


@pytest.mark.parametrize(
    ("matrices", "chunks", "outputs", "left"),
    [
        ([5], [3], [], (5, 3)),
        ([5], [3], [5], (0, 3)),
        ([5], [3], [4], (5, 0)),
        ([5], [3], [3, 5], (0, 0)),
        ([5], [3], [9, 5], (0, 0)),
        ([5, 9], [3], [9, 5], (0, 3)),
        ([4], [3, 3], [3, 4], (0, 3)),
    ],
)
def test_the_largest_arrays_lie_in_the_tightest_outputs(
    matrices: list[int], chunks: list[int], outputs: list[int], left: tuple[int, int]
) -> None:
    assert temporaries._without_room(matrices, chunks, outputs) == left


def test_a_device_holds_its_share_of_heads_vocabulary_and_rows() -> None:
    mesh: Any = memory.abstract_mesh(2, 2, 2)
    found = temporaries.share_of(MODEL, settings(compute_dtype="bfloat16"), mesh, 16, "cudnn")
    config = found.config
    assert (config.num_heads, config.num_kv_heads, config.intermediate_size, config.vocab_size) == (2, 1, 24, 32)
    assert (config.hidden_size, found.rows, found.row_tokens, found.slots) == (32, 2, 16, 32)
    assert (found.item, found.attention_item) == (2, 2)
    assert temporaries.share_of(MODEL, settings(compute_dtype="bfloat16"), mesh, 16, "xla").attention_item == 4


def test_arrays_of_a_phase_are_counted_by_their_widths() -> None:
    stream, attention, mlp = share().bytes_of(_Arrays(stream=2, queries=3, keys=5, mlp=7))
    assert stream == 16 * 2 * 32 * 2
    assert attention == 16 * (3 * 4 * 16 + 5 * 2 * 16) * 4
    assert mlp == 16 * 7 * 48 * 2


@pytest.mark.parametrize(("chunk_tokens", "tokens"), [(0, 16), (4, 4), (16, 16), (99, 16)])
def test_the_head_holds_its_weight_and_a_chunk(chunk_tokens: int, tokens: int) -> None:
    found = sizes(temporaries._head(settings(logits_chunk_tokens=chunk_tokens), share(), []))
    weight, chunk = 64 * 32, tokens * 64 * 4
    assert found["residual stream"] == 16 * 32 * (2 * 2 + 4)
    scoring, adding = weight * (2 + 4) + 3 * chunk, weight * (2 + 4 + 4) + chunk
    expected = (weight * 10, chunk) if adding > scoring else (weight * 6, 3 * chunk)
    assert (found["head weight"], found["logits chunk"]) == expected


def test_what_fits_into_gradients_costs_the_head_nothing() -> None:
    found = sizes(temporaries._head(settings(logits_chunk_tokens=1), share(), [64 * 32 * 4] * 3))
    assert (found["head weight"], found["logits chunk"]) == (0, 2 * 64 * 4)
    found = sizes(temporaries._head(settings(logits_chunk_tokens=1), share(), [64 * 32 * 4] * 9))
    assert (found["head weight"], found["logits chunk"]) == (0, 0)


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (2, 1), (1, 2)])
def test_gradients_of_a_layer_wait_until_they_are_reduced(data: int, fsdp: int) -> None:
    mesh: Any = SimpleNamespace(shape={"data": data, "fsdp": fsdp, "tensor": 1})
    found = sizes(temporaries._layer(mesh, share(), _Arrays(1, 1, 1, 1)))
    attention, mlp = [32 * 64, 32 * 32, 32 * 32, 64 * 32], [32 * 48] * 3
    assert found["layer weights"] == 2 * sum(attention + mlp)
    assert found["layer gradients"] == 4 * (max(attention + mlp) if data * fsdp == 1 else sum(attention + mlp))
    assert found["head weight"] == 64 * 32 * 4 // fsdp


def test_a_kernel_holds_statistics_or_scores_where_it_does() -> None:
    statistics = 16 * MAX_SEGMENTS * 4 * 4
    assert sizes(temporaries._kernel(share(), "cudnn", "gpu")) == {"attention kernel": statistics}
    block = min(8, temporaries.ACCELERATOR_BLOCK)
    assert sizes(temporaries._kernel(share(), "xla", "gpu")) == {"attention kernel": 3 * 2 * 4 * block**2 * 4}
    long = share(row_tokens=10 * temporaries.ACCELERATOR_BLOCK)
    assert sizes(temporaries._kernel(long, "xla", "tpu")) == {
        "attention kernel": 3 * 2 * 4 * temporaries.ACCELERATOR_BLOCK**2 * 4
    }
    assert temporaries._kernel(share(), "xla", "cpu") == temporaries._kernel(share(), "splash", "tpu") == ()


def test_copies_beside_the_policy_are_counted() -> None:
    mesh: Any = memory.abstract_mesh(1, 1, 1)
    policy = 4 * sum(leaf.size for leaf in jax.tree.leaves(abstract_parameters(MODEL)))
    assert sizes(memory._kept_copies(MODEL, settings(), mesh)) == {"published": policy}
    half = settings(publish_dtype="bfloat16", mismatch_versions=2, loss={"kl": {"coefficient": 0.1}})
    assert sizes(memory._kept_copies(MODEL, half, mesh)) == {"published": 3 * policy // 2, "reference": policy}


@pytest.fixture
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No forward pass is traced: 7 bytes of activations are kept."""
    monkeypatch.setattr(temporaries, "kept_activation_bytes", lambda *_, **__: 7)


@pytest.mark.usefixtures("nothing_kept")
def test_parts_are_cut_over_the_mesh_and_programs_hold_what_they_use() -> None:
    found, halved = (
        memory.plan(MODEL, settings(remat="full"), memory.abstract_mesh(1, fsdp, 1), row_tokens=8, attention="xla",
                    platform="cpu")
        for fsdp in (1, 2)
    )  # fmt: skip
    own, half = sizes(found.gradients.own), sizes(halved.gradients.own)
    assert own["parameters"] == own["gradients"] == 4 * found.num_parameters
    assert half["batch"] * 2 == own["batch"]
    assert half["parameters"] < 0.6 * own["parameters"]
    assert (found.num_devices, halved.num_devices) == (1, 2)
    beside = sizes(found.gradients.beside)
    assert beside["accumulator"] == own["parameters"]
    assert 2 * own["parameters"] <= beside["moments"] <= 2 * own["parameters"] + 64
    update = sizes(found.update.own)
    assert update["update"] == 2 * own["parameters"]
    assert update.keys() == {"parameters", "moments", "gradients", "update"}
    assert [tenant.name for tenant in found.update.own if tenant.fusible] == ["update"]
    assert sizes(found.update.beside).keys() == {"batch", "published"}


@pytest.mark.usefixtures("nothing_kept")
def test_the_fullest_phase_is_taken() -> None:
    mesh: Any = memory.abstract_mesh(1, 1, 1)
    small = settings(logits_chunk_tokens=1, remat="full")

    def fullest(part: Share, chosen: LearnerSettings = small, outputs: Any = ()) -> tuple[str, dict[str, int]]:
        name, tenants = temporaries.fullest_phase(MODEL, chosen, mesh, part, "splash", "tpu", outputs)
        return name, sizes(tenants)

    name, held = fullest(share(row_tokens=512))
    others = [
        sum(sizes(temporaries._layer(mesh, share(row_tokens=512), arrays)).values())
        for arrays in temporaries._LAYER_PHASES["full"].values()
    ]
    assert name in temporaries._LAYER_PHASES["full"]
    assert sum(held.values()) - held["activations"] == max(others)
    wide = share(config=dataclasses.replace(MODEL, vocab_size=1 << 20))
    assert fullest(wide, settings(remat="full"))[0] == "head"


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize(
    ("attention", "remat", "kept"),
    [
        ("cudnn", "none", 7 + MODEL.num_layers * 16 * MAX_SEGMENTS * 4 * 4),
        ("cudnn", "matmuls", 7),
        ("cudnn", "full", 7),
        ("splash", "none", 7),
    ],
)
def test_layers_that_are_kept_keep_their_statistics(attention: Any, remat: str, kept: int) -> None:
    mesh: Any = memory.abstract_mesh(1, 1, 1)
    _, tenants = temporaries.fullest_phase(MODEL, settings(remat=remat), mesh, share(), attention, "gpu", ())
    assert sizes(tenants)["activations"] == kept


def test_a_critic_of_its_own_keeps_as_much_as_the_policy() -> None:
    gae = {"advantage": {"estimator": "gae"}}
    shared, separate = (
        temporaries.kept_activation_bytes(
            MODEL, settings(remat="full", loss=gae | {"value": {"model": kind}}), rows=2, row_tokens=8
        )
        for kind in ("shared", "separate")
    )
    assert separate == 2 * shared
    # Of each layer its input alone: a slot of the residual stream in fp32.
    assert shared == MODEL.num_layers * 16 * 32 * 4


def test_an_activation_that_looks_like_a_parameter_counts() -> None:
    """Rows of 48 tokens of width 32 have the shape of two layers' matrices; as many rows of 47 have that of none."""
    assert MODEL.intermediate_size == 48
    kept = [
        temporaries.kept_activation_bytes(MODEL, settings(remat="full"), rows=2, row_tokens=tokens)
        for tokens in (47, 48)
    ]
    assert kept == [MODEL.num_layers * 2 * tokens * MODEL.hidden_size * 4 for tokens in (47, 48)]
