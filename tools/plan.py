"""Says what the train step takes of each device, and what bounds a whole loop on many; needs no weights, no devices.

    python -m tools.plan memory --model DIR --mesh fsdp=8 --limit-gb 141 [--verify]
    python -m tools.plan memory --model Qwen3-8B --shapes model_shapes.json --mesh fsdp=8
    python -m tools.plan shapes --shapes model_shapes.json --mesh fsdp=32,tensor=8 [--lower]
    python -m tools.plan scale [--gpus 8 64 512] [--inputs inputs.toml] [--shapes model_shapes.json --model Qwen3-8B]

`--verify` compiles both programs of the step for virtual CPU devices and shows XLA's own figures beside the prediction,
in float32, where those mean something; `--lower` lowers them without compiling. GB are 1e9 bytes. What is predicted and
what is not: `learner_jax.training.memory`. `scale` divides GPUs between sampling and training and shows how busy
everything in the loop is. `--show-inputs` lists what it computes from; `--inputs` changes that. docs/studies/scale.md
explains it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from learner_jax.contracts import ModelConfig, ModelConfigError, parse_model_config
from tools.assembly import clear_errors
from tools.command_line import command_parser, positive
from tools.planning import (
    AXES,
    GB,
    MODELS,
    Case,
    against_published,
    all_tables,
    build_engine,
    comparable,
    inputs_table,
    parse_mesh,
    plan,
    plan_scale,
    read_case,
    read_inputs,
    read_model,
    read_shapes,
    suggestions,
    verdict,
    virtual_devices,
)
from tools.reporting import terminal

if TYPE_CHECKING:
    from learner_jax.training import Plan, Program

_DTYPES = ("float32", "bfloat16")


def _gb(size: float) -> str:
    return _short(size / GB)


def _short(value: float) -> str:
    """With two decimals, or two digits where it is small."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


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
        "mesh": dict(zip(AXES, case.sizes, strict=True)),
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
    case, limit = read_case(arguments), arguments.limit_gb * GB
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
    models, case, limit = read_shapes(arguments.shapes), read_case(arguments), arguments.limit_gb * GB
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
        f"{_short(plan.num_parameters / 1e9)} B",
        *map(_gb, [*columns, program.total_bytes - sum(columns), plan.peak_bytes]),
    ]


def _lowered(model: ModelConfig, case: Case) -> str:
    started = time.monotonic()
    build_engine(model, comparable(case)).lowered(case.row_tokens)
    return f"; lowered in {time.monotonic() - started:.1f} s"


def run_scale(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Whole loops: every model on every number of GPUs."""
    inputs = read_inputs(arguments.inputs)
    if arguments.model:
        models = {name: read_model(name, arguments.shapes, arguments.family) for name in arguments.model}
    else:
        models = {name: parse_model_config(fields, origin=name) for name, fields in MODELS.items()}
    plans = [plan_scale(name, model, gpus, inputs) for name, model in models.items() for gpus in arguments.gpus]
    tables = all_tables(plans, against_published(inputs))
    if arguments.show_inputs:
        tables.append(inputs_table(inputs))
    for table in tables:
        if arguments.markdown:
            print(table.markdown(), end="\n\n")
        else:
            console.print(table.rich())
    return {"inputs": inputs.model_dump(), "plans": [dataclasses.asdict(planned) for planned in plans]}


def _add_scale(command: argparse.ArgumentParser) -> None:
    command.add_argument("--gpus", type=positive, nargs="+", default=[8, 64, 512], help="numbers of GPUs")
    command.add_argument("--model", nargs="+", help="as of `memory`; by default three public shapes")
    command.add_argument("--shapes", type=Path, help='{"models": {name: config.json}}')
    command.add_argument("--family", default="", help="family of the models, where it is none of Weir's")
    command.add_argument("--inputs", type=Path, help="TOML file of inputs to change")
    command.add_argument("--show-inputs", action="store_true", help="every input, and where it comes from")
    command.add_argument("--markdown", action="store_true", help="tables for a page")
    command.add_argument("--json", type=Path, help="file to write the figures to")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("plan", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    memory = commands.add_parser("memory", help="one model in detail")
    memory.add_argument("--model", required=True, help="Hugging Face folder, config.json, or a name in --shapes")
    memory.add_argument("--family", default="", help="family of the model, where it is none of Weir's")
    memory.add_argument("--verify", action="store_true", help="compile for virtual CPU devices and compare")
    shapes = commands.add_parser("shapes", help="one line per model of a file of shapes")
    shapes.add_argument("--lower", action="store_true", help="lower both programs of every model")
    _add_scale(commands.add_parser("scale", help="what bounds a whole loop"))
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
    commands: dict[str, Callable[[argparse.Namespace, Console], dict[str, Any]]]
    commands = {"memory": run_memory, "shapes": run_shapes, "scale": run_scale}
    with clear_errors():
        result = commands[arguments.command](arguments, console)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
