"""Conversion between Orbax checkpoints and Hugging Face folders: same bytes and logits, little memory, any kill."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from learner_jax.checkpoints.checkpoints import Checkpoints, Position, restore_parameters
from learner_jax.checkpoints.manifest import CheckpointError
from learner_jax.contracts import hf_files
from learner_jax.contracts import model as hf_names
from learner_jax.contracts.hf_config import ModelConfigError
from learner_jax.conversion.checkpoint_reader import open_source
from learner_jax.conversion.convert import ConversionError, from_hf, to_hf, verify
from learner_jax.conversion.work_folder import WorkError
from learner_jax.models import hf_folder as hf_io
from learner_jax.models.value import with_value_parameters
from learner_jax.settings.learner import LearnerSettings, OptimizerSettings
from learner_jax.training.engine import Engine
from learner_jax.training.objective import supervised
from learner_jax.training.optimizer import make_optimizer
from learner_jax.training.train_step import init_state
from tests.support.decoders import CASES, lively_parameters, save_random_hf_model, transformers
from tests.support.model_folders import (
    CONFIG,
    QWEN,
    assert_same,
    expected_tensors,
    save_foreign,
    save_learner_checkpoint,
    write_config,
)
from tools import convert

__all__ = ["transformers"]

GATE, UP = "model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"


def convert_command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["tools.convert", *map(str, arguments)])
    convert.main()


@pytest.fixture(scope="module")
def params() -> Any:
    return lively_parameters(CONFIG)


@pytest.fixture(scope="module")
def saved(params: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the learner's checkpoints, with the model's config kept beside them."""
    folder = save_learner_checkpoint(tmp_path_factory.mktemp("saved") / "checkpoints", params)
    write_config(folder / "source_model")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_every_family_gives_the_logits_of_transformers(transformers: Any, case: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_random_hf_model(transformers, case, source, "bfloat16")
    from_hf(source, out=tmp_path / "checkpoint")
    to_hf(tmp_path / "checkpoint", out=tmp_path / "hf", dtype="bfloat16", max_shard_bytes=40_000)
    assert len(list((tmp_path / "hf").glob("model-0000*.safetensors"))) > 2
    found = verify(tmp_path / "checkpoint", tmp_path / "hf")
    assert found.problems == ()
    assert found.judge == "transformers"
    assert found.logprob_difference is not None
    assert 0 < found.logprob_difference < 1e-4


@pytest.mark.parametrize(("case", "dtype"), [("qwen2_tied", "bfloat16"), ("llama_gqa_untied_rope", "float32")])
def test_hf_to_orbax_to_hf_gives_every_file_back(transformers: Any, case: str, dtype: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_random_hf_model(transformers, case, source, dtype)
    (source / "tokenizer.json").write_text('{"version": "1.0"}')
    from_hf(source, out=tmp_path / "checkpoint")
    to_hf(tmp_path / "checkpoint", out=tmp_path / "hf", dtype=dtype)
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {path.name for path in source.iterdir()}
    for path in source.iterdir():
        assert (tmp_path / "hf" / path.name).read_bytes() == path.read_bytes(), path.name


def test_orbax_to_hf_to_orbax_gives_every_value_back(saved: Path, params: Any, tmp_path: Path) -> None:
    to_hf(saved, out=tmp_path / "hf")
    from_hf(tmp_path / "hf", out=tmp_path / "again")
    again = flatten_dict(restore_parameters(tmp_path / "again"))
    for path, value in flatten_dict(params).items():
        np.testing.assert_array_equal(again.pop(path), value)
    assert again == {}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_are_those_that_publishing_sends(saved: Path, params: Any, dtype: Any, tmp_path: Path) -> None:
    to_hf(saved, out=tmp_path / "hf", dtype=dtype)
    expected = expected_tensors(params, dtype)
    assert_same(load_file(tmp_path / "hf" / "model.safetensors"), expected)
    save_file(expected, tmp_path / "whole.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert json.loads((tmp_path / "hf" / "config.json").read_text()) == QWEN | {"dtype": dtype}


def test_shards_and_index_are_as_transformers_expects(saved: Path, params: Any, tmp_path: Path) -> None:
    to_hf(saved, out=tmp_path / "hf", max_shard_bytes=10_000)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    expected = expected_tensors(params)
    assert index["metadata"] == {"total_size": sum(value.nbytes for value in expected.values())}
    files = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    found = {name: value for path in files for name, value in load_file(path).items()}
    assert_same(found, expected)
    assert index["weight_map"] == {name: path.name for path in files for name in load_file(path)}
    assert all(sum(v.nbytes for v in load_file(path).values()) <= 10_000 for path in files)


def test_only_the_policy_is_written(params: Any, tmp_path: Path) -> None:
    both = with_value_parameters(params, CONFIG, "separate")
    save_learner_checkpoint(tmp_path / "checkpoints", jax.tree.map(jnp.array, both))
    to_hf(tmp_path / "checkpoints", model_dir=write_config(tmp_path / "model"), out=tmp_path / "hf")
    assert_same(load_file(tmp_path / "hf" / "model.safetensors"), expected_tensors(params))


LAYOUTS: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    "whole leaves": lambda shape: shape,
    "one layer": lambda shape: (1, *shape[1:]) if len(shape) == 3 else shape,
    "two layers, cut columns": lambda shape: (*shape[:-1], max(shape[-1] // 3, 1)),
    "cut everywhere, with remainders": lambda shape: tuple(max(size // 2 - 1, 1) for size in shape),
}


@pytest.mark.parametrize("compressor", [None, {"id": "zstd", "level": 1}])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_foreign_chunks_are_read_once(params: Any, layout: str, compressor: Any, tmp_path: Path) -> None:
    save_foreign(tmp_path / "c", params, LAYOUTS[layout], compressor=compressor)
    model = write_config(tmp_path / "model")
    values = flatten_dict(params, sep=".").values()
    chunks = sum(
        int(np.prod([-(-size // part) for size, part in zip(v.shape, LAYOUTS[layout](v.shape), strict=True)]))
        for v in values
    )
    before = chunk_reads()
    to_hf(tmp_path / "c", model_dir=model, out=tmp_path / "hf")
    assert chunk_reads() - before == chunks
    assert_same(load_file(tmp_path / "hf" / "model.safetensors"), expected_tensors(params))


def chunk_reads() -> int:
    found = ts.experimental_collect_matching_metrics("/tensorstore/cache/chunk_cache/reads")
    return sum(value["value"] for metric in found for value in metric["values"])


@pytest.mark.parametrize("form", ["ocdbt", "folders", "zarr3"])
def test_a_checkpoint_sharded_over_eight_devices(params: Any, form: str, tmp_path: Path) -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def placed(value: jax.Array) -> jax.Array:
        *others, last = value.shape
        rows = "a" if others and others[-1] % 4 == 0 else None
        spec = jax.P(*[None] * (len(others) - 1), *[rows] * bool(others), "b" if last % 2 == 0 else None)
        return jax.device_put(value, jax.NamedSharding(mesh, spec))

    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=form != "folders", use_zarr3=form == "zarr3")
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "c", args=ocp.args.PyTreeSave(jax.tree.map(placed, params)))
    with open_source(tmp_path / "c", CONFIG) as source:
        assert source.arrays["embed.weight"].chunk_layout.read_chunk.shape[-1] < CONFIG.hidden_size
    to_hf(tmp_path / "c", model_dir=write_config(tmp_path / "model"), out=tmp_path / "hf", dtype="bfloat16")
    assert_same(load_file(tmp_path / "hf" / "model.safetensors"), expected_tensors(params, "bfloat16"))


@pytest.mark.parametrize("moments", ["float32", "bfloat16", "factored"])
def test_a_run_starts_from_a_converted_folder(stories_model: Path, tmp_path: Path, moments: Any) -> None:
    optimizer = OptimizerSettings(warmup_steps=10, moments=moments)
    from_hf(stories_model, out=tmp_path / "checkpoint", seed=5, optimizer=optimizer)
    config = hf_names.read_model_config(stories_model)
    settings = LearnerSettings(steps=1, groups_per_step=1, sequence_length=8, microbatch_rows=2, optimizer=optimizer)
    engine = Engine(settings, config, objective=supervised, temperature=1.0, devices=jax.devices()[:2])
    loaded = hf_io.load_parameters(stories_model, config)
    expected = engine.init_state(loaded, seed=5)
    checkpoints = Checkpoints(tmp_path / "checkpoint", keep=1)
    state, position, _ = checkpoints.restore(engine.init_state(jax.tree.map(jnp.zeros_like, loaded), seed=0))
    assert position == Position(0, -1, 0, ())
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))
    checkpoints.save(replace(state, step=state.step + 1), Position(1, 0, 0, ()))
    checkpoints.close()
    to_hf(tmp_path / "checkpoint", out=tmp_path / "hf")
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == (stories_model / "tokenizer.json").read_bytes()
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == (stories_model / "model.safetensors").read_bytes()


def damaged(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    path.unlink()
    save_file({name: np.ascontiguousarray(v) for name, v in tensors.items()}, path, metadata={"format": "pt"})


def flipped(value: np.ndarray) -> np.ndarray:
    value = value.copy()
    value.reshape(-1).view(np.uint32)[7] ^= 1
    return value


O_PROJ, Q_PROJ = "model.layers.0.self_attn.k_proj.weight", "model.layers.1.self_attn.k_proj.weight"
DAMAGE: dict[str, tuple[Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], list[str]]] = {
    "a flipped bit": (lambda t: t | {UP: flipped(t[UP])}, [f"{UP}: .* 1 values differ"]),
    "swapped tensors": (
        lambda t: t | {GATE: t[UP], UP: t[GATE]},
        [f"{GATE}: .* it holds the values of {UP}", f"{UP}: .* it holds the values of {GATE}"],
    ),
    "a transposed square tensor": (lambda t: t | {O_PROJ: t[O_PROJ].T}, [f"{O_PROJ}: .* it is transposed"]),
    "a transposed tensor": (lambda t: t | {UP: t[UP].T}, [rf"{UP}: expected shape \(48, 32\), got \(32, 48\)"]),
    "a missing tensor": (lambda t: {n: v for n, v in t.items() if n != UP}, [f"{UP}: .* missing"]),
    "a strange tensor": (lambda t: t | {"extra": t[UP]}, ["extra: not a tensor of this model"]),
    "another dtype": (lambda t: t | {UP: t[UP].astype(np.float16)}, [f"{UP}: expected dtype F32 .*, got F16"]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_names_what_is_damaged(damage: str, saved: Path, tmp_path: Path) -> None:
    change, patterns = DAMAGE[damage]
    to_hf(saved, out=tmp_path / "hf")
    damaged(tmp_path / "hf", change)
    problems = verify(saved, tmp_path / "hf").problems
    assert len(problems) == len(patterns)
    for problem, pattern in zip(sorted(problems), sorted(patterns), strict=True):
        assert_matches(pattern, problem)


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


def test_verify_notices_what_equal_weights_do_not_show(
    transformers: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learner's reader takes nothing that transformers reads otherwise, so the bound itself is made to fail."""
    to_hf(saved, out=tmp_path / "hf")
    assert verify(saved, tmp_path / "hf").problems == ()
    with monkeypatch.context() as patch:
        patch.setattr("learner_jax.conversion.convert.LOGPROB_TOLERANCE", 0.0)
        (problem,) = verify(saved, tmp_path / "hf").problems
    assert_matches("log-probs of transformers on .* differ by .*, expected at most 0: ", problem)
    refused = {"problem_type": "single_label_classification", "num_labels": 1}
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | refused))
    (problem,) = verify(saved, tmp_path / "hf").problems
    assert_matches("expected that transformers loads it, but: .*num_labels", problem)
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    with pytest.raises(ModelConfigError, match="model_type is .qwen2., but architectures says Qwen3ForCausalLM"):
        verify(saved, tmp_path / "hf")


def test_a_checkpoint_that_is_not_whole_is_refused_before_it_is_compared(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "c")
    to_hf(tmp_path / "c", out=tmp_path / "hf")
    file = tmp_path / "c" / "3" / "manifest" / "metadata"
    file.write_bytes(file.read_bytes().replace(b"completed", b"c0mpleted"))
    with pytest.raises(CheckpointError, match=f"c/3 is damaged: {file}: expected content with xxh3_128"):
        verify(tmp_path / "c", tmp_path / "hf")


def test_the_command_converts_verifies_and_says_so(
    stories_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    c, hf = tmp_path / "c", tmp_path / "hf"
    convert_command(monkeypatch, "from-hf", "--model", stories_model, "--out", c, "--verify", "--no-logprobs")
    convert_command(monkeypatch, "to-hf", "--checkpoint", c, "--out", hf, "--max-shard-size", "1MB", "--verify")
    out = capsys.readouterr().out
    assert f"wrote {c}" in out
    assert "verified: 47 tensors" in out
    assert "log-probs of" in out
    assert len(list(hf.glob("model-*-of-00003.safetensors"))) == 3
    path = sorted(hf.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(SystemExit):
        convert_command(monkeypatch, "verify", "--checkpoint", c, "--hf", hf)
    assert "is not what" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        convert_command(monkeypatch, "to-hf", "--checkpoint", c, "--out", hf)
    assert "is not empty; name a folder that does not exist yet" in capsys.readouterr().err


def test_nothing_is_written_over(stories_model: Path, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(WorkError, match="is not empty; name a folder that does not exist yet"):
        from_hf(stories_model, out=tmp_path)
    with pytest.raises(WorkError, match="is not empty"):
        to_hf(saved, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_is_missing_or_of_another_model_is_named(saved: Path, params: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        to_hf(tmp_path / "nowhere", out=tmp_path / "hf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty holds no checkpoint; expected <step>/state"):
        to_hf(tmp_path / "empty", out=tmp_path / "hf")
    lonely = save_foreign(tmp_path / "a" / "b" / "c", params, lambda shape: shape)
    with pytest.raises(ConversionError, match="does not say which model it is of: .* name the model's folder"):
        to_hf(lonely, out=tmp_path / "hf")
    wide = write_config(tmp_path / "wide", intermediate_size=50)
    with pytest.raises(CheckpointError, match=r"gate_proj.weight has shape \(2, 48, 32\), expected \(2, 50, 32\)"):
        to_hf(saved, model_dir=wide, out=tmp_path / "hf")
    untied = write_config(tmp_path / "untied", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match="has no parameter lm_head.weight"):
        to_hf(saved, model_dir=untied, out=tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(saved: Path, value: float, tmp_path: Path) -> None:
    to_hf(saved, out=tmp_path / "hf", dtype="bfloat16")
    damaged(tmp_path / "hf", lambda t: t | {UP: np.full_like(t[UP], value)})
    with pytest.raises(hf_files.WeightFileError, match=f"model.safetensors: tensor {UP} has NaN or infinite"):
        from_hf(tmp_path / "hf", out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_missing_chunk_is_named(params: Any, tmp_path: Path) -> None:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(tmp_path / "c", args=ocp.args.PyTreeSave(params))
    chunk = next((tmp_path / "c" / "layers.mlp.up_proj.weight").glob("0.0.0"))
    chunk.unlink()
    with pytest.raises(CheckpointError, match=r"layers.mlp.up_proj.weight\[0:2,0:48,0:32\] can't be read"):
        to_hf(tmp_path / "c", model_dir=write_config(tmp_path / "model"), out=tmp_path / "hf")


def test_a_run_s_settings_name_the_model(params: Any, tmp_path: Path) -> None:
    model = write_config(tmp_path / "elsewhere" / "model")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1, config={"model": {"path": str(model)}})
    state = init_state(jax.tree.map(jnp.array, params), make_optimizer(OptimizerSettings()), seed=0)
    checkpoints.save(state, Position(1, 1, 0, ()))
    checkpoints.close()
    to_hf(tmp_path / "run" / "checkpoints", out=tmp_path / "hf")
    assert_same(load_file(tmp_path / "hf" / "model.safetensors"), expected_tensors(params))
