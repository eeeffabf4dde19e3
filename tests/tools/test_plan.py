"""The memory plan: against XLA's own figures, by how tenants scale, and the command that prints it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from learner_jax.contracts.model import ModelConfig, parse_model_config
from learner_jax.models.sharding import ShardingError
from learner_jax.settings.learner import LearnerSettings
from learner_jax.training import PlanError, Program, memory
from tools import plan as command
from tools.planning import Case, build_engine, plan, virtual_devices

MEDIUM_JSON: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "tie_word_embeddings": False,
}

#: Llama 3.1 70B's config.json, the fields that have to do with shapes.
LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


def model(**changes: Any) -> ModelConfig:
    return parse_model_config(MEDIUM_JSON | changes, origin="test")


def case(data: int = 1, fsdp: int = 1, tensor: int = 1, **changes: Any) -> Case:
    base: dict[str, Any] = {
        "steps": 1,
        "groups_per_step": 1,
        "sequence_length": 512,
        "microbatch_rows": 8,
        "remat": "full",
        "logits_chunk_tokens": 256,
    }
    return Case(LearnerSettings.model_validate(base | changes), (data, fsdp, tensor), "cpu")


def tenants(program: Program) -> dict[str, int]:
    return {tenant.name: tenant.size for tenant in (*program.beside, *program.own)}


KL = {"kl": {"coefficient": 0.01}}


@pytest.mark.parametrize(
    ("shape", "of"),
    [
        pytest.param({"vocab_size": 1024}, case(fsdp=8, loss=KL), id="fsdp8-full-kl"),
        pytest.param(
            {"tie_word_embeddings": True}, case(remat="none", data=2), id="data2-none-tied", marks=pytest.mark.soak
        ),
        pytest.param(
            {"architectures": ["Qwen2ForCausalLM"], "vocab_size": 16_384},
            case(fsdp=2, tensor=2, logits_chunk_tokens=512, optimizer={"moments": "bfloat16"}),
            id="fsdp2-tensor2-large-head-biases",
        ),
        pytest.param(
            {"vocab_size": 512, "num_attention_heads": 6, "head_dim": 64, "num_key_value_heads": 2},
            case(remat="matmuls", fsdp=2, optimizer={"moments": "factored"}),
            id="fsdp2-matmuls-grouped",
            marks=pytest.mark.soak,
        ),
    ],
)
def test_prediction_is_within_a_tenth_of_xlas_own_figures(shape: dict[str, Any], of: Case) -> None:
    predicted = plan(model(**shape), of)
    measured = memory.measure(build_engine(model(**shape), of), row_tokens=of.row_tokens)
    assert (predicted.gradients.phase == "head") == (shape.get("vocab_size", 0) > 10_000)
    for program, figure in zip((predicted.gradients, predicted.update), measured, strict=True):
        assert program.own_bytes == pytest.approx(figure, rel=0.1), (program.name, program.phase)


def test_tenants_add_up_and_the_peak_is_the_fuller_program() -> None:
    planned = plan(model(), case(loss=KL, mismatch_versions=2))
    for program in (planned.gradients, planned.update):
        assert program.own_bytes == sum(tenant.size for tenant in program.own)
        assert program.total_bytes == program.own_bytes + sum(tenant.size for tenant in program.beside)
        assert all(tenant.size >= 0 for tenant in (*program.own, *program.beside))
    assert planned.peak_bytes == max(planned.gradients.total_bytes, planned.update.total_bytes)
    assert planned.update.total_bytes - planned.update.fused_bytes == tenants(planned.update)["update"]
    assert planned.gradients.fused_bytes == planned.gradients.total_bytes


def test_exact_tenants_are_what_arithmetic_says() -> None:
    of = case(fsdp=4, microbatch_rows=4, loss=KL, mismatch_versions=2, publish_dtype="bfloat16")
    planned = plan(model(), of)
    layer = 256 * (2 * 8 * 32 + 2 * 4 * 32 + 3 * 768)
    norms = 4 * (2 * 256 + 2 * 32) + 256  # on every device
    matrices = 4 * layer + 2 * 4096 * 256
    found = tenants(planned.gradients)
    assert planned.num_parameters == matrices + norms
    parameters = 4 * (matrices // 4 + norms)
    for name in ("parameters", "gradients", "accumulator", "reference"):
        assert found[name] == parameters, name
    assert found["moments"] == pytest.approx(2 * parameters, abs=64)  # and counters
    assert found["published"] == 3 * parameters // 2
    assert found["activations"] == 4 * 512 * 256 * 4  # fp32 input of 4 layers, one row
    assert found["batch"] == 512 * 4 * 10  # nine arrays, one of them the reference's, and the layout's four


def test_tenants_scale_as_they_must() -> None:
    def sizes(of: Case) -> dict[str, int]:
        return tenants(plan(model(), of).gradients)

    base = sizes(case(fsdp=2))
    wider = sizes(case(fsdp=4))
    for name in ("parameters", "moments", "gradients", "accumulator", "activations", "batch"):
        assert wider[name] == pytest.approx(base[name] / 2, rel=0.01), name
    assert sizes(case(fsdp=2, microbatch_rows=16))["activations"] == 2 * base["activations"]
    assert sizes(case(fsdp=2, mismatch_versions=3))["published"] == 4 * base["published"]
    assert sizes(case(fsdp=2, compute_dtype="bfloat16"))["activations"] == base["activations"] // 2
    assert sizes(case(fsdp=2, optimizer={"moments": "bfloat16"}))["moments"] == pytest.approx(
        base["moments"] * 3 / 4, rel=0.01
    )
    assert base["activations"] < sizes(case(fsdp=2, remat="matmuls"))["activations"]
    assert sizes(case(fsdp=2, remat="matmuls"))["activations"] < sizes(case(fsdp=2, remat="none"))["activations"]
    wide = model(vocab_size=65_536)
    big, small = (tenants(plan(wide, case(logits_chunk_tokens=n)).gradients) for n in (2048, 1024))
    assert big["logits chunk"] == 2 * small["logits chunk"] == 3 * 2048 * 65_536 * 4


def test_the_policy_that_keeps_matmuls_keeps_them() -> None:
    """Of each layer its input, queries, keys, values, attention's output, its projection, gate and up."""
    of = case(remat="matmuls", microbatch_rows=1)
    kept = tenants(plan(model(), of).gradients)["activations"]
    widths = 256 + (8 + 2 * 4) * 32 + 8 * 32 + 256 + 2 * 768
    assert kept == pytest.approx(4 * 512 * widths * 4, rel=0.1)


def test_70b_is_planned_and_lowered_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = tmp_path / "shapes.json"
    shapes.write_text(json.dumps({"models": {"llama-70b": LLAMA_70B}}))
    out = tmp_path / "out.json"
    arguments = ["--shapes", str(shapes), "--mesh", "tensor=8", "--lower", "--json", str(out)]
    command.main(["shapes", *arguments])
    result = json.loads(out.read_text())["llama-70b"]
    assert result["num_parameters"] == 70_553_706_496
    assert result["verdict"] == "does not fit"
    assert "lowered in" in capsys.readouterr().out
    state = {tenant["name"]: tenant["size"] for tenant in result["programs"]["update"]["own"]}
    assert state["parameters"] == pytest.approx(70_553_706_496 * 4 / 8, rel=0.001)
    assert not jax.live_arrays() or max(x.nbytes for x in jax.live_arrays()) < 2**30


def test_published_shapes_are_planned_or_refused(
    shared_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shapes = shared_data / "model_shapes" / "model_shapes.json"
    command.main(["shapes", "--shapes", str(shapes), "--mesh", "fsdp=8"])
    printed = capsys.readouterr().out
    for name, fields in json.loads(shapes.read_text())["models"].items():
        lines = [line for line in printed.splitlines() if name in line.split() or f"│ {name} " in line]
        dense = fields.get("architectures") in (["Qwen3ForCausalLM"], ["Qwen2ForCausalLM"], ["LlamaForCausalLM"])
        assert any("fits" in line if dense else "is refused: architecture" in line for line in lines), name


def write_model(folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps(MEDIUM_JSON | {"model_type": "qwen3"}))
    return str(folder)


def test_the_command_shows_tenants_limit_and_what_would_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_model(tmp_path)
    of = ["memory", "--model", name, "--row-tokens", "512", "--kl-coefficient", "0.001", "--remat", "none"]
    command.main([*of, "--limit-gb", "100"])
    printed = capsys.readouterr().out
    for tenant in ("parameters", "moments", "gradients", "accumulator", "activations", "published", "reference"):
        assert tenant in printed, tenant
    assert "fits into 100 GB" in printed
    assert "saves" not in printed
    out = tmp_path / "out.json"
    command.main([*of, "--limit-gb", "0.0001", "--json", str(out)])
    printed = capsys.readouterr().out
    assert "does not fit into 0.0001 GB" in printed
    assert 'learner.optimizer.moments = "factored" saves' in printed
    assert "mesh.fsdp = 2, twice the devices" in printed
    found = json.loads(out.read_text())
    assert found["peak_bytes"] > 1e5
    (size,) = (tenant["size"] for tenant in found["programs"]["update"]["own"] if tenant["name"] == "parameters")
    assert 0 < size < 1e8
    assert f"{size / 1e9:.2g} " in printed  # and not 0.00


def test_the_configuration_file_is_the_base_and_options_override_it(tmp_path: Path) -> None:
    config = Path(command.__file__).parent.parent / "configs" / "gsm8k_one_gpu.toml"
    out = tmp_path / "out.json"
    of = ["memory", "--model", write_model(tmp_path), "--config", str(config), "--json", str(out)]
    notes = []
    for options in ([], ["--remat", "none"]):
        command.main([*of, *options])
        own = json.loads(out.read_text())["programs"]["gradients"]["own"]
        notes.append({tenant["name"]: tenant["note"] for tenant in own})
    assert notes[0]["batch"] == "arrays of 2 rows of 8192 slots"
    assert [n["activations"] for n in notes] == [f'kept of 4 layers, remat = "{r}"' for r in ("full", "none")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "nowhere"], "model folder nowhere does not exist"),
        (["--model", "MODEL", "--microbatch-rows", "3", "--mesh", "fsdp=2"], "learner.microbatch_rows is 3"),
        (["--model", "MODEL", "--mesh", "tensor=3"], "set the mesh so that the cut divides"),
        (["--model", "MODEL", "--row-tokens", "100", "--attention", "splash"], "multiple of 128 tokens"),
        (["--model", "MODEL", "--logits-chunk-tokens", "-1"], "learner.logits_chunk_tokens"),
        (["--model", "A", "--shapes", "SHAPES"], "has no model 'A'; it has moe"),
        (["--model", "moe", "--shapes", "SHAPES"], '"Qwen3MoeForCausalLM" is not supported'),
        (["--model", "x", "--shapes", "MODEL/config.json"], "is no list of shapes"),
    ],
)
def test_what_cannot_be_planned_is_one_clear_line(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = tmp_path / "shapes.json"
    shapes.write_text(json.dumps({"models": {"moe": {"architectures": ["Qwen3MoeForCausalLM"]}}}))
    places = {"MODEL": write_model(tmp_path), "SHAPES": str(shapes), "MODEL/config.json": f"{tmp_path}/config.json"}
    with pytest.raises(SystemExit) as ended:
        command.main(["memory", *(places.get(argument, argument) for argument in arguments)])
    assert ended.value.code == 78
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert expected in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("mesh", ["fsdp", "fsdp=0", "rows=2", "fsdp=x"])
def test_a_mesh_that_is_not_understood_is_named(mesh: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["memory", "--model", "x", "--mesh", mesh])
    assert ended.value.code == 2
    assert f"{mesh!r} is not understood" in capsys.readouterr().err


def test_more_devices_than_jax_has_are_refused() -> None:
    with pytest.raises(PlanError, match="the mesh has 4096 devices"):
        virtual_devices(4096)


def test_rows_must_divide_over_the_mesh() -> None:
    with pytest.raises(ShardingError, match="microbatch_rows is 8"):
        plan(model(), case(fsdp=16))
