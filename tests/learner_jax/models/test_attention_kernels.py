"""Attention on meshes, and each platform's kernel: what it computes, and what it refuses."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from learner_jax.models import attention, cudnn_attention
from learner_jax.models.attention import attend
from tests.support.attention_cases import (
    PACKED,
    SHARED,
    assert_close,
    equations,
    labels,
    operands,
    oracle,
    pulled_back,
    silent_padding,
)


def _pretend_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """What JAX asks of the device before it lowers for cuDNN."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91300)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: False)


def _mesh() -> Mesh:
    return jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def _sharded(mesh: Mesh, arrays: Sequence[Any], known: Any) -> Any:
    slots = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor", None))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None))
    return [jax.device_put(x, slots) for x in arrays], tuple(jax.device_put(x, rows) for x in known)


def test_the_compiler_partitions_rows_and_heads() -> None:
    known = labels([*SHARED, PACKED[0]], 96)
    arrays = operands(4, 96, 4, 2)
    expected = pulled_back(*arrays, known, block=32)
    sharded, rows = _sharded(_mesh(), arrays, known)

    @jax.jit
    def run(query: Any, key: Any, value: Any, cotangent: Any, rows: Any) -> Any:
        call = functools.partial(attend, segments=rows[0], prefixes=rows[1], implementation="xla", block=32)
        output, pull_back = jax.vjp(call, query, key, value)
        return [output, *pull_back(cotangent)]

    compiled = run.lower(*sharded, rows).compile()
    assert not re.findall(r"all-gather|all-to-all|collective-permute", compiled.as_text())
    for a, b in zip(compiled(*sharded, rows), expected, strict=True):
        assert a.sharding.is_equivalent_to(sharded[0].sharding, a.ndim)
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "dtype", "tolerance"),
    # bf16: as above, and the scaled queries and the probabilities are rounded as well.
    [([[(100, None), (60, None), (80, None)], [(200, None)]], jnp.float32, 1e-5), (None, jnp.bfloat16, 2**-6)],
    ids=["packed-fp32", "plain-bf16"],
)
def test_splash_follows_the_definition(rows: Any, dtype: Any, tolerance: float) -> None:
    known = None if rows is None else labels(rows, 256)
    query, key, value, cotangent = operands(2, 256, 4, 2, dtype=dtype)
    cotangent = silent_padding(cotangent, known)
    options: Any = {"implementation": "splash", "block": 128, "interpret": True}
    got = pulled_back(query, key, value, cotangent, None if known is None else (known[0], None), **options)
    assert_close(got, oracle(query, key, value, cotangent, known), known, tolerance)


def test_splash_runs_on_each_devices_rows_and_heads() -> None:
    known = labels([[(100, None), (20, None)], [(128, None)], [(5, None)], []], 128)
    arrays = operands(4, 128, 4, 2)
    arrays = (*arrays[:3], silent_padding(arrays[3], known))
    mesh = _mesh()
    sharded, rows = _sharded(mesh, arrays, known)
    options: Any = {"implementation": "splash", "block": 128, "interpret": True}
    got = pulled_back(*sharded, (rows[0], None), mesh=mesh, **options)
    assert_close(got, oracle(*arrays, known), known, 1e-5)


@pytest.mark.parametrize("implementation", ["splash", "cudnn"])
def test_opaque_kernels_see_one_devices_part(monkeypatch: pytest.MonkeyPatch, implementation: Any) -> None:
    _pretend_hopper(monkeypatch)
    query, key, value, _ = operands(8, 128, 4, 2, dtype=jnp.bfloat16)
    segments = jnp.zeros((8, 128), jnp.int32)

    def call(*arrays: Any, **rows: Any) -> Any:
        return attend(*arrays, **rows, prefixes=None, implementation=implementation, mesh=_mesh(), max_segments=2)

    arrays = [(2, 128, 2, 16), (2, 128, 1, 16), (2, 128, 1, 16)]
    for rows, expected in ((segments, [*arrays, (2, 128)]), (None, arrays)):
        jaxpr = jax.make_jaxpr(functools.partial(call, segments=rows))(query, key, value).jaxpr
        (sharded,) = (e for e in equations(jaxpr) if e.primitive.name == "shard_map")
        local = [x.aval.shape for x in sharded.params["jaxpr"].invars]
        assert local[-len(expected) :] == expected  # after the kernel's constants
        assert sharded.outvars[0].aval.shape == (8, 128, 4, 16)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_fp32_is_multiplied_in_fp32_in_both_passes(implementation: Any) -> None:
    query, key, value, _ = operands(1, 128, 2, 1)

    def loss(query: Any, key: Any, value: Any) -> Any:
        options: Any = {"implementation": implementation, "block": 128, "interpret": True}
        return attend(query, key, value, segments=None, prefixes=None, **options).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(query, key, value).jaxpr
    precisions = [e.params["precision"] for e in equations(jaxpr) if e.primitive.name == "dot_general"]
    assert len(precisions) >= 7  # 2 forward, 5 backward
    assert set(precisions) == {(jax.lax.Precision.HIGHEST,) * 2}


def test_offsets_of_segments() -> None:
    segments, _ = labels([[(2, None), (3, None), (1, None)], [(8, None)], [], [(1, None)] * 5], 8)
    starts, lengths, counts = cudnn_attention.segment_offsets(jnp.asarray(segments), 4)
    np.testing.assert_array_equal(starts, [[0, 2, 5, -1, -1], [0, -1, -1, -1, -1], [-1] * 5, [0, 1, 2, 3, -1]])
    np.testing.assert_array_equal(lengths, [[2, 3, 1, -1], [8, -1, -1, -1], [-1] * 4, [1, 1, 1, 1]])
    np.testing.assert_array_equal(counts, [3, 1, 0, 5])
    assert starts.dtype == lengths.dtype == jnp.int32
    assert cudnn_attention.segment_offsets(jnp.asarray(segments), 1)[1].shape == (4, 2)


@pytest.mark.parametrize("packed", [False, True])
def test_cudnn_lowers_to_its_flash_kernel(monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    _pretend_hopper(monkeypatch)
    query, key, value, cotangent = operands(2, 320, 4, 2, 64, jnp.bfloat16)
    segments = jnp.asarray(labels([[(100, None), (60, None)], [(320, None)]], 320)[0]) if packed else None

    @jax.jit
    def gradients(query: Any, key: Any, value: Any) -> Any:
        options: Any = {"implementation": "cudnn", "max_segments": 5}
        return jax.vjp(lambda *x: attend(*x, segments=segments, prefixes=None, **options), query, key, value)[1](
            cotangent
        )

    text = gradients.trace(query, key, value).lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "custom_call @__cudnn" in line]
    assert [re.search(r"@__cudnn\$(\w+)", call)[1] for call in calls] == ["fmhaSoftmax", "fmhaSoftmaxBackward"]  # type: ignore[index]
    mask, most = ("PADDING_CAUSAL", 5) if packed else ("CAUSAL", 1)
    for call in calls:
        assert rf"\22mask_type\22: \22{mask}\22" in call
        assert rf"\22max_seg_per_batch\22: {most}" in call
        # Queries, keys and values first; packed, all with the same heads, or JAX's offsets of keys are wrong.
        shapes = re.findall(r"tensor<([\dx]+)xbf16>", call.rsplit(" : (", 1)[1])[:3]
        assert shapes == ["2x320x4x64", *["2x320x4x64" if packed else "2x320x2x64"] * 2]
    assert "320x320" not in text


def test_cudnn_is_told_where_segments_are_and_what_it_leaves_in_padding_reaches_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In place of the kernel one that works by its arguments alone, and leaves NaN where it writes nothing."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    def kernel(query: Any, key: Any, value: Any, *, scale: float, mask_type: Any, **packed: Any) -> Any:
        assert mask_type == fused.MaskType.PADDING_CAUSAL
        assert query.shape == key.shape == value.shape, "or JAX's offsets of keys are wrong"
        output = np.full(query.shape, np.nan, np.float32)
        q, k, v = (np.asarray(x, np.float32) for x in (query, key, value))
        assert set(packed) == {"q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets"}
        np.testing.assert_array_equal(packed["q_seqlen"], packed["kv_seqlen"])
        np.testing.assert_array_equal(packed["q_offsets"], packed["kv_offsets"])
        for row, (starts, lengths) in enumerate(zip(packed["q_offsets"], packed["q_seqlen"], strict=True)):
            for start, length in zip(np.asarray(starts), np.asarray(lengths), strict=False):
                at = slice(start, start + length)
                if length > 0:
                    scores = np.einsum("qnh,knh->nqk", q[row, at], k[row, at]) * scale
                    scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
                    output[row, at] = np.einsum("nqk,knh->qnh", np.asarray(jax.nn.softmax(scores)), v[row, at])
        assert not any(x[np.asarray(segments) < 0].any() for x in (q, k, v)), "what is in padding is not handed on"
        return jnp.asarray(output)

    monkeypatch.setattr(fused, "dot_product_attention", kernel)
    query, key, value, _ = operands(3, 16, 4, 2, 8, jnp.bfloat16)
    segments = jnp.asarray(labels([[(5, None), (7, None)], [(16, None)], [(2, None), (3, None), (4, None)]], 16)[0])
    known = np.asarray(segments) >= 0
    got = np.asarray(cudnn_attention.cudnn(query, key, value, segments, max_segments=3), np.float32)
    wanted = attend(query, key, value, segments=segments, prefixes=None, implementation="xla")
    np.testing.assert_allclose(got[known], np.asarray(wanted, np.float32)[known], atol=2e-2)
    assert (got[~known] == 0).all()
    few = np.asarray(cudnn_attention.cudnn(query, key, value, segments, max_segments=2), np.float32)
    assert np.isnan(few[2]).all(), "a row of more segments than there is room for is no answer at all"
    np.testing.assert_array_equal(few[:2], got[:2])


def test_cudnn_says_what_it_can_not_take() -> None:
    query, key, value, _ = operands(1, 16, 4, 2, 8, jnp.bfloat16)
    segments = jnp.zeros((1, 16), jnp.int32)
    with pytest.raises(ValueError, match="expects bfloat16, got float32"):
        cudnn_attention.cudnn(query.astype(jnp.float32), key, value, segments, max_segments=2)
    with pytest.raises(ValueError, match="expects max_segments, got None"):
        cudnn_attention.cudnn(query, key, value, segments, max_segments=None)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [PACKED, None], ids=["packed", "plain"])
def test_cudnn_follows_the_definition(rows: Any) -> None:
    if jax.default_backend() != "gpu":
        pytest.skip("needs a GPU that JAX sees: JAX_PLATFORMS=cuda")
    known = None if rows is None else labels(rows, 96)
    query, key, value, cotangent = operands(3, 96, 4, 2, 64, jnp.bfloat16)
    cotangent = silent_padding(cotangent, known)
    options: Any = {"implementation": "cudnn", "max_segments": 4}
    got = pulled_back(query, key, value, cotangent, None if known is None else (known[0], None), **options)
    # The kernel rounds probabilities and their gradients to bf16 before its second matmul.
    assert_close(got, oracle(query, key, value, cotangent, known), known, 2**-6)
    if known is not None:
        few = attend(query, key, value, segments=known[0], prefixes=None, implementation="cudnn", max_segments=3)
        assert np.isnan(few[0]).all()
        assert np.isfinite(few[1:]).all()


def test_the_table() -> None:
    got = {
        (platform, dtype): attention.attention_implementation(platform, dtype)
        for platform in ("cpu", "gpu", "tpu")
        for dtype in ("float32", "bfloat16")
    }
    assert [key for key, kernel in got.items() if kernel == "xla"] == [
        ("cpu", "float32"),
        ("cpu", "bfloat16"),
        ("gpu", "float32"),
    ]
    assert got["gpu", "bfloat16"] == "cudnn"
    assert got["tpu", "float32"] == got["tpu", "bfloat16"] == "splash"
    assert [attention.shares_prefixes(kernel) for kernel in ("xla", "cudnn", "splash")] == [True, False, False]
    with pytest.raises(ValueError, match=r"platform 'npu' .* known platforms: cpu, gpu, tpu; .*float32, bfloat16"):
        attention.attention_implementation("npu", "float32")
    with pytest.raises(ValueError, match=r"compute dtype 'int8'.*learner\.compute_dtype"):
        attention.attention_implementation("cpu", "int8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cudnn", 100, 256), r"multiple of 8 and at most 256, got 100.*learner\.attention"),
        (("cudnn", 264, 256), r"at most 256, got 264"),
        (("cudnn", 192, 256, False, "8.0"), r"at most 128, got 192"),
        (("cudnn", 64, 256, True, "8.9"), r"from compute capability 9\.0 up, got 8\.9"),
        (("splash", 64, 200), r"multiple of 128 tokens, got 200: change learner\.row_tokens"),
        (("flash", 64, 256), r"'flash'; known: xla, cudnn, splash \(learner\.attention\)"),
    ],
)
def test_shapes_that_a_kernel_cannot_take(arguments: Any, message: str) -> None:
    implementation, head_dim, row_tokens, *rest = arguments
    extra = dict(zip(("packed", "compute_capability"), rest, strict=False))
    with pytest.raises(ValueError, match=message):
        attention.check_supported(implementation, head_dim=head_dim, row_tokens=row_tokens, **extra)


def test_shapes_that_a_kernel_takes() -> None:
    for arguments in (("xla", 7, 13), ("cudnn", 64, 200), ("splash", 64, 384)):
        attention.check_supported(arguments[0], head_dim=arguments[1], row_tokens=arguments[2])  # type: ignore[arg-type]
    attention.check_supported("cudnn", head_dim=128, row_tokens=64, packed=False, compute_capability="8.0")
    attention.check_supported("cudnn", head_dim=256, row_tokens=64, compute_capability="10.0")


@pytest.mark.parametrize(
    ("heads", "dtype", "length", "options", "message"),
    [
        ((4, 3), jnp.float32, 128, {"implementation": "xla"}, r"multiple of the key heads, got 4 and 3"),
        ((4, 2), jnp.float32, 130, {"implementation": "splash"}, r"multiple of 128 tokens, got 130"),
        ((4, 2), jnp.bfloat16, 128, {"implementation": "cudnn", "prefixes": True}, r"cudnn .*None, got an array"),
        ((4, 2), jnp.float32, 128, {"implementation": "splash", "prefixes": True}, r"splash .*None, got an array"),
        ((4, 2), jnp.float32, 128, {"implementation": "cudnn", "max_segments": 4}, r"expects bfloat16, got float32"),
        ((4, 2), jnp.bfloat16, 128, {"implementation": "cudnn"}, r"expects max_segments, got None"),
        ((4, 2), jnp.bfloat16, 2**25, {"implementation": "cudnn", "max_segments": 4}, r"2\*\*31 .*got 2147483648:"),
        ((4, 2), jnp.float32, 128, {"implementation": "xla", "segments": None, "prefixes": True}, r"segments .*None"),
    ],
)
def test_calls_that_are_refused(heads: tuple[int, int], dtype: Any, length: int, options: Any, message: str) -> None:
    query, key = (jax.ShapeDtypeStruct((1, length, n, 16), dtype) for n in heads)
    row = jax.ShapeDtypeStruct((1, length), jnp.int32)
    options = {"segments": True, "prefixes": None} | options

    def call(query: Any, key: Any, segments: Any, prefixes: Any) -> Any:
        given = {
            "segments": segments if options["segments"] else None,
            "prefixes": prefixes if options["prefixes"] else None,
        }
        return attend(query, key, key, **(options | given))

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call, query, key, row, row)
