"""What is planned: a model and a case, read from a command line, and the prediction of the memory that they take."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from configs.load import load_config
from learner_jax.contracts import ModelConfig, ModelConfigError, parse_model_config, read_json_object, read_model_config
from learner_jax.settings import LearnerSettings, MeshSettings

if TYPE_CHECKING:
    from learner_jax.training import Engine, Plan

AXES = ("data", "fsdp", "tensor")

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
    from learner_jax.training import PlanError, memory

    kernel: Any = case.settings.attention
    if kernel == "auto":
        kernel = attention.attention_implementation(case.platform, case.settings.compute_dtype)
    try:
        attention.check_supported(kernel, head_dim=model.head_dim, row_tokens=case.row_tokens)
    except ValueError as error:
        raise PlanError(str(error)) from None
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


def parse_mesh(text: str) -> tuple[int, int, int]:
    """(data, fsdp, tensor) of "fsdp=8,tensor=2"; axes that are not named are 1."""
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        axis, separator, size = part.partition("=")
        if axis.strip() not in sizes or not separator or not size.strip().isdigit() or int(size) < 1:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not understood; expected axis=size, such as fsdp=8,tensor=2, of {', '.join(AXES)}"
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
