"""Says what the learner's train step takes of each device, and for which models it fits; needs no weights, no devices.

    python -m tools.plan memory --model DIR --mesh fsdp=8 --limit-gb 141 [--verify]
    python -m tools.plan memory --model Qwen3-8B --shapes model_shapes.json --mesh fsdp=8
    python -m tools.plan shapes --shapes model_shapes.json --mesh fsdp=32,tensor=8 [--lower]

`--verify` compiles both programs of the step for virtual CPU devices and shows XLA's own figures beside the prediction,
in float32, where those mean something; `--lower` lowers them without compiling. GB are 1e9 bytes. What is predicted and
what is not: `learner_jax.training.memory`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from configs.load import load_config
from learner_jax.contracts import ModelConfig, ModelConfigError, parse_model_config, read_json_object, read_model_config
from learner_jax.settings import LearnerSettings, MeshSettings
from tools.assembly import wiring
from tools.command_line import command_parser
from tools.reporting import terminal

if TYPE_CHECKING:
    from learner_jax.training import Engine, Plan, Program

_GB = 1e9
_AXES = ("data", "fsdp", "tensor")
_DTYPES = ("float32", "bfloat16")

#: Command-line option -> place of the setting under [learner].
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "microbatch_rows": ("microbatch_rows",),
    "remat": ("remat",),
    "compute_dtype": ("compute_dtype",),
    "publish_dtype": ("publish_dtype",),
    "moments": ("optimizer", "moments"),
    "logits_chunk_tokens": ("logits_chunk_tokens",),
    "kl_coefficient": ("loss", "kl", "coefficient"),
    "mismatch_versions": ("mismatch_versions",),
    "attention": ("attention",),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is planned: everything but the model."""

    settings: LearnerSettings
    sizes: tuple[int, int, int]
    platform: str

    @property
    def num_devices(self) -> int:
        return math.prod(self.sizes)

    @property
    def row_tokens(self) -> int:
        return max(self.settings.row_lengths)

    def with_settings(self, changes: Mapping[str, Any]) -> Case:
        return dataclasses.replace(self, settings=_changed(self.settings, changes))


def _changed(settings: LearnerSettings, changes: Mapping[str, Any]) -> LearnerSettings:
    """Settings with other values; keys are dotted paths."""
    tree: dict[str, Any] = settings.model_dump()
    for path, value in changes.items():
        *parents, last = path.split(".")
        functools.reduce(lambda table, key: table[key], parents, tree)[last] = value
    return LearnerSettings.model_validate(tree)


def virtual_devices(number: int) -> None:
    """Makes JAX, if it is not imported yet, see that many CPU devices and nothing else.

    Raises:
      PlanError: it is imported and sees fewer.
    """
    if "jax" not in sys.modules:
        os.environ["JAX_PLATFORMS"] = "cpu"
        flag = f"--xla_force_host_platform_device_count={number}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    import jax

    from learner_jax.training import PlanError

    if len(jax.devices()) < number:
        raise PlanError(f"the mesh has {number} devices, but JAX was started with {len(jax.devices())}")


def plan(model: ModelConfig, case: Case) -> Plan:
    """The prediction for one model.

    Raises:
      PlanError: the attention kernel cannot take these shapes.
    """
    from learner_jax.models import attention
    from learner_jax.training import memory

    kernel: Any = case.settings.attention
    if kernel == "auto":
        kernel = attention.attention_implementation(case.platform, case.settings.compute_dtype)
    try:
        attention.check_supported(kernel, head_dim=model.head_dim, row_tokens=case.row_tokens)
    except ValueError as error:
        raise memory.PlanError(str(error)) from None
    mesh = memory.abstract_mesh(*case.sizes)
    return memory.plan(model, case.settings, mesh, row_tokens=case.row_tokens, attention=kernel, platform=case.platform)


def build_engine(model: ModelConfig, case: Case) -> Engine:
    """The learner's own engine over virtual CPU devices."""
    import jax

    from learner_jax.training import Engine, reinforcement

    data, fsdp, tensor = case.sizes
    settings = case.settings.model_copy(update={"mesh": MeshSettings(data=data, fsdp=fsdp, tensor=tensor)})
    devices = jax.devices()[: case.num_devices]
    return Engine(settings, model, objective=reinforcement(settings.loss), temperature=1.0, devices=devices)


def comparable(case: Case) -> Case:
    """The case that XLA's figures for CPU devices can be compared with: fp32, and the attention that a CPU runs."""
    compared = case.with_settings({"compute_dtype": "float32", "attention": "xla"})
    return dataclasses.replace(compared, platform="cpu")


# What would help where it does not fit.


def changes(case: Case, plan: Plan) -> dict[str, dict[str, Any]]:
    """Changes of settings that can only save memory, by what one would write."""
    settings = case.settings
    shards = case.sizes[0] * case.sizes[1]
    found: dict[str, dict[str, Any]] = {}
    for moments in ("bfloat16", "factored"):
        found[f'optimizer.moments = "{moments}"'] = {"optimizer.moments": moments}
    found['remat = "full"'] = {"remat": "full"}
    found[f"microbatch_rows = {shards}"] = {"microbatch_rows": shards}
    found['compute_dtype = "bfloat16"'] = {"compute_dtype": "bfloat16"}
    found['publish_dtype = "bfloat16"'] = {"publish_dtype": "bfloat16"}
    found["logits_chunk_tokens = 256"] = {"logits_chunk_tokens": 256}
    if not settings.loss.mismatch.lagging:
        found["mismatch_versions = 0"] = {"mismatch_versions": 0}
    kl = settings.loss.kl
    if not (kl.target or kl.budget or kl.reference or kl.reset_every):
        found["loss.kl.coefficient = 0"] = {"loss.kl.coefficient": 0.0}
    return found


def suggestions(model: ModelConfig, case: Case, limit: float) -> list[str]:
    """Settings to change, the one that saves most first, until it fits or nothing helps; then more devices."""
    current, lines = plan(model, case), []
    while current.peak_bytes > limit:
        options = []
        for label, values in changes(case, current).items():
            changed = case.with_settings(values)
            options.append((plan(model, changed).peak_bytes, label, changed))
        smallest, label, changed = min(options, key=lambda option: option[:2])
        if smallest >= current.peak_bytes:
            break
        saved = current.peak_bytes - smallest
        lines.append(f"learner.{label} saves {saved / _GB:.1f} GB: {smallest / _GB:.1f} GB")
        case, current = changed, plan(model, changed)
    if current.peak_bytes > limit:
        data, fsdp, tensor = case.sizes
        rows = math.lcm(case.settings.microbatch_rows, data * fsdp * 2)
        wider = dataclasses.replace(case.with_settings({"microbatch_rows": rows}), sizes=(data, fsdp * 2, tensor))
        saved = plan(model, wider).peak_bytes
        lines.append(f"mesh.fsdp = {fsdp * 2}, twice the devices: {saved / _GB:.1f} GB")
    return lines


def verdict(plan: Plan, limit: float) -> str:
    """Whether a plan stays within `limit` bytes per device."""
    if plan.peak_bytes <= limit:
        return "fits"
    return "fits if the update is fused" if plan.fused_peak_bytes <= limit else "does not fit"


# Input.


def parse_mesh(text: str) -> tuple[int, int, int]:
    """(data, fsdp, tensor) of "fsdp=8,tensor=2"; axes that are not named are 1."""
    sizes = dict.fromkeys(_AXES, 1)
    for part in text.split(","):
        axis, separator, size = part.partition("=")
        if axis.strip() not in sizes or not separator or not size.strip().isdigit() or int(size) < 1:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not understood; expected axis=size, such as fsdp=8,tensor=2, of {', '.join(_AXES)}"
            )
        sizes[axis.strip()] = int(size)
    data, fsdp, tensor = sizes.values()
    return data, fsdp, tensor


def read_shapes(path: Path) -> dict[str, Any]:
    """The models of a file {"models": {name: fields of config.json}}."""
    try:
        models = json.loads(path.read_text())["models"]
        return {str(name): dict(fields) for name, fields in models.items()}
    except OSError as error:
        raise ModelConfigError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelConfigError(f'{path} is no list of shapes; expected {{"models": {{name: config}}}}') from None


def read_model(name: str, shapes: Path | None, family: str = "") -> ModelConfig:
    """A model by folder or config.json, or by its name in a file of shapes; `family` as model.family of a run."""
    if shapes is not None:
        models = read_shapes(shapes)
        if name not in models:
            raise ModelConfigError(f"{shapes} has no model {name!r}; it has {', '.join(models)}")
        return parse_model_config(models[name], origin=name, family=family)
    path = Path(name).expanduser()
    if not path.is_file():
        return read_model_config(path, family=family)
    return parse_model_config(read_json_object(path), origin=str(path), family=family)


def read_case(arguments: argparse.Namespace) -> Case:
    """Settings of a configuration file, or of an ordinary large run, under the options given."""
    shards = arguments.mesh[0] * arguments.mesh[1]
    if arguments.config is not None:
        settings = load_config(arguments.config).learner
    else:
        settings = LearnerSettings(
            steps=1,
            groups_per_step=1,
            sequence_length=8192,
            microbatch_rows=shards,
            compute_dtype="bfloat16",
            publish_dtype="bfloat16",
            remat="full",
        )
    given: dict[str, Any] = {
        ".".join(path): getattr(arguments, option)
        for option, path in _OPTIONS.items()
        if getattr(arguments, option) is not None
    }
    if arguments.row_tokens is not None:
        given |= {"row_tokens": (), "sequence_length": arguments.row_tokens}
    try:
        return Case(_changed(settings, given), arguments.mesh, arguments.platform)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in ("learner", *problem["loc"]))
        raise ModelConfigError(f"{key}: {problem['msg'].removeprefix('Value error, ')}") from None


# Output.


def _gb(size: float) -> str:
    return f"{size / _GB:.2f}"


def program_table(program: Program) -> Table:
    """A program's tenants."""
    table = Table(title=f"{program.name}, at its fullest: {program.phase}", title_justify="left")
    table.add_column("tenant")
    table.add_column("GB", justify="right")
    table.add_column("what")
    for tenant in program.own:
        table.add_row(tenant.name, _gb(tenant.size), tenant.note + (" (a GPU may fuse it away)" * tenant.fusible))
    table.add_row("the program", _gb(program.own_bytes), "what XLA's memory_analysis counts", style="bold")
    for tenant in program.beside:
        table.add_row(f"+ {tenant.name}", _gb(tenant.size), tenant.note)
    table.add_row("together", _gb(program.total_bytes), "", style="bold")
    return table


def as_json(plan: Plan, case: Case, limit: float) -> dict[str, Any]:
    """The plan as plain values; sizes in bytes per device."""
    programs = {
        program.name: dataclasses.asdict(program) | {"own_bytes": program.own_bytes, "total_bytes": program.total_bytes}
        for program in (plan.gradients, plan.update)
    }
    return {
        "mesh": dict(zip(_AXES, case.sizes, strict=True)),
        "num_parameters": plan.num_parameters,
        "peak_bytes": plan.peak_bytes,
        "fused_peak_bytes": plan.fused_peak_bytes,
        "limit_bytes": limit,
        "verdict": verdict(plan, limit),
        "programs": programs,
    }


def run_memory(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """One model in detail."""
    model = read_model(arguments.model, arguments.shapes, arguments.family)
    case, limit = read_case(arguments), arguments.limit_gb * _GB
    virtual_devices(case.num_devices if arguments.verify else 1)
    planned = plan(model, case)
    console.print(f"{planned.num_parameters:,} parameters, {case.num_devices} devices, bytes per device")
    for program in (planned.gradients, planned.update):
        console.print(program_table(program))
    outcome = verdict(planned, limit)
    console.print(
        f"peak {_gb(planned.peak_bytes)} GB, {_gb(planned.fused_peak_bytes)} GB where the update is fused: {outcome} "
        f"into {arguments.limit_gb:g} GB"
    )
    if planned.peak_bytes > limit:
        for line in suggestions(model, case, limit):
            console.print(f"  {line}")
    result = as_json(planned, case, limit)
    if arguments.verify:
        result["verified"] = _verify(model, case, console)
    return result


def _verify(model: ModelConfig, case: Case, console: Console) -> dict[str, Any]:
    from learner_jax.training import memory

    compared = comparable(case)
    predicted = plan(model, compared)
    started = time.monotonic()
    with console.status(f"compiling for {case.num_devices} virtual CPU devices"):
        figures = memory.measure(build_engine(model, compared), row_tokens=case.row_tokens)
    table = Table(title="against XLA, float32 on CPU devices", title_justify="left")
    for column in ("program", "predicted GB", "XLA GB", "difference"):
        table.add_column(column, justify="left" if column == "program" else "right")
    result = {}
    for program, measured in zip((predicted.gradients, predicted.update), figures, strict=True):
        difference = program.own_bytes / measured - 1
        table.add_row(program.name, _gb(program.own_bytes), _gb(measured), f"{difference:+.1%}")
        result[program.name] = {"predicted": program.own_bytes, "xla": measured, "difference": difference}
    console.print(table)
    console.print(f"compiled in {time.monotonic() - started:.0f} s")
    return result


def run_shapes(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """One line per model."""
    models, case, limit = read_shapes(arguments.shapes), read_case(arguments), arguments.limit_gb * _GB
    virtual_devices(case.num_devices if arguments.lower else 1)
    from learner_jax.models import ShardingError
    from learner_jax.training import PlanError

    table = Table(title=f"GB per device of {case.num_devices}, limit {arguments.limit_gb:g}", title_justify="left")
    names = ("model", "parameters", "weights", "moments", "gradients", "copies", "kept", "other", "peak", "")
    for name in names:
        table.add_column(name, justify="left" if name in ("model", "") else "right", no_wrap=True)
    results: dict[str, Any] = {}
    refused = []
    for name, fields in models.items():
        try:
            model = parse_model_config(fields, origin=name)
            planned = plan(model, case)
            lowered = _lowered(model, case) if arguments.lower else ""
        except (ModelConfigError, PlanError, ShardingError) as error:
            results[name] = {"error": str(error)}
            refused.append(f"{name} is refused: {str(error).removeprefix(f'{name}: ')}")
            continue
        results[name] = as_json(planned, case, limit)
        table.add_row(name, *_columns(planned), verdict(planned, limit) + lowered)
    console.print(table)
    for line in refused:
        console.print(line, markup=False, soft_wrap=True)
    return results


def _columns(plan: Plan) -> list[str]:
    """Sizes while gradients are computed (two sets of them), and the peak over both programs."""
    program = plan.gradients
    sizes = {tenant.name: tenant.size for tenant in (*program.own, *program.beside)}
    groups = [("parameters",), ("moments",), ("gradients", "accumulator"), ("published", "reference"), ("activations",)]
    columns = [sum(sizes.get(name, 0) for name in group) for group in groups]
    return [
        f"{plan.num_parameters / 1e9:.2f} B",
        *map(_gb, [*columns, program.total_bytes - sum(columns), plan.peak_bytes]),
    ]


def _lowered(model: ModelConfig, case: Case) -> str:
    started = time.monotonic()
    build_engine(model, comparable(case)).lowered(case.row_tokens)
    return f"; lowered in {time.monotonic() - started:.1f} s"


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("plan", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    memory = commands.add_parser("memory", help="one model in detail")
    memory.add_argument("--model", required=True, help="Hugging Face folder, config.json, or a name in --shapes")
    memory.add_argument("--family", default="", help="family of the model, where it is none of Weir's")
    memory.add_argument("--verify", action="store_true", help="compile for virtual CPU devices and compare")
    shapes = commands.add_parser("shapes", help="one line per model of a file of shapes")
    shapes.add_argument("--lower", action="store_true", help="lower both programs of every model")
    for command in (memory, shapes):
        command.add_argument("--shapes", type=Path, required=command is shapes, help='{"models": {name: config.json}}')
        command.add_argument("--mesh", type=parse_mesh, default=(1, 1, 1), help="fsdp=8,tensor=1,data=1")
        command.add_argument("--platform", choices=("gpu", "tpu", "cpu"), default="gpu", help="chooses the attention")
        command.add_argument("--limit-gb", type=float, default=141.0, help="memory of one device, 1e9 bytes")
        command.add_argument("--json", type=Path, help="file to write the figures to, in bytes")
        command.add_argument("--config", type=Path, help="TOML file whose [learner] is the base; options override it")
        for option in ("row-tokens", "microbatch-rows", "logits-chunk-tokens", "mismatch-versions"):
            command.add_argument(f"--{option}", type=int)
        command.add_argument("--kl-coefficient", type=float)
        command.add_argument("--remat", choices=("none", "matmuls", "full"))
        command.add_argument("--compute-dtype", choices=_DTYPES)
        command.add_argument("--publish-dtype", choices=_DTYPES)
        command.add_argument("--moments", choices=("float32", "bfloat16", "factored"))
        command.add_argument("--attention", choices=("auto", "xla", "cudnn", "splash"))
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    console = terminal.console()
    run: Callable[[argparse.Namespace, Console], dict[str, Any]]
    run = run_memory if arguments.command == "memory" else run_shapes
    with wiring.clear_errors():
        result = run(arguments, console)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
