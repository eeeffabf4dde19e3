"""The model folder that a run begins from: given, or made by the process that asks first."""

from __future__ import annotations

from pathlib import Path

from configs.paths import hub_model
from configs.schema import Config
from rewards.contracts import prompt_text
from tools.assembly.build import build_task
from tools.assembly.hub_model import hub_folder
from tools.assembly.new_model import CreateModelError, create_model
from tools.assembly.paths import RunPaths

#: problems whose texts the tokenizer of a created model is trained on
_TOKENIZER_PROBLEMS = 2000


def base_model_path(config: Config, paths: RunPaths) -> Path:
    """Where the model folder that the run begins from is, or will be; one of the hub is fetched.

    Raises:
      HubModelError, HubUnreachableError: see `hub_folder`.
    """
    if config.model.create:
        return paths.created_model
    model = hub_model(config.model.path)
    return Path(config.model.path) if model is None else hub_folder(model, paths.directory)


def base_model_dir(config: Config, paths: RunPaths) -> Path:
    """The model folder that the run begins from: given, or made by whichever process asks first."""
    if config.model.create and not paths.created_model.exists():
        make_model(config, paths.created_model)
    return base_model_path(config, paths)


def make_model(config: Config, out: Path) -> None:
    """Makes the model that [model.create] asks for.

    Raises:
      CreateModelError: it can't be made from these settings.
    """
    shape = config.model.create
    if shape is None:
        raise CreateModelError("there is no [model.create] to make a model by; the run begins from model.path")
    task = build_task(config)
    problems = [task.problem("train", index) for index in range(_TOKENIZER_PROBLEMS)]
    prompts = [prompt_text(problem, config.task.prompt_template) for problem in problems]
    try:
        create_model(out, shape, [*prompts, *(task.target(problem) for problem in problems)], seed=config.run.seed)
    except CreateModelError:
        if not out.exists():  # else another process was quicker, and made the same
            raise


def start_model_dir(config: Config, paths: RunPaths) -> Path:
    """The model that reinforcement learning starts from, and the frozen reference."""
    return paths.start_model if config.trains_first else base_model_dir(config, paths)
