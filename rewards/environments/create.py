"""From a task's settings to the environment that plays it."""

from __future__ import annotations

import inspect
from typing import Any

from learner_jax.runtime import DoorError, WeirError, raised, require_call
from rewards.contracts import AsyncEnvironment, Environment, Task, ToolDefinition
from rewards.environments.agent import AgentEnvironment
from rewards.environments.own_environment import OwnEnvironment
from rewards.environments.own_tools import tools_of_class
from rewards.environments.tool_environment import ToolEnvironment
from rewards.sandbox import ENVIRONMENT
from rewards.settings import TaskSettings
from rewards.tools import definitions, distinct, read_definition

_PROTOCOL = ("version", "max_turns", "reset", "step")
_ASYNC_PROTOCOL = ("tools", "close")


def create_environment(task: Task, settings: TaskSettings) -> Environment | AsyncEnvironment:
    """The environment that the settings name.

    A function, or a class with `version` and `max_turns`, is called with (task, settings) and gives an environment as
    `rewards.contracts` has it. Any other class is played by `OwnEnvironment`.

    Raises:
      DoorError: there is no such code, or it makes no environment.
      TaskError: a class can't be loaded in the processes that play it.
    """
    what = f"task.environment {settings.environment!r}"
    found = ENVIRONMENT.load(settings.environment)
    if _is_played(found):
        return OwnEnvironment(settings, task_version=task.version)
    require_call(found, ("task", "settings"), (), what=what)
    try:
        environment = found(task, settings)
    except WeirError:
        raise
    except Exception as error:
        raise DoorError(f"{what} made no environment: {raised(error)}") from error
    is_async = inspect.iscoroutinefunction(getattr(environment, "step", None))
    protocol = (*_PROTOCOL, *_ASYNC_PROTOCOL) if is_async else _PROTOCOL
    if lacking := [name for name in protocol if not hasattr(environment, name)]:
        raise DoorError(
            f"{what} made a {type(environment).__name__} without {', '.join(lacking)}; expected what "
            f"rewards.contracts.{'AsyncEnvironment' if is_async else 'Environment'} has"
        )
    shown = [tool.name for tool in declared_tools(settings)]
    made = [tool.name for tool in getattr(environment, "tools", ())]
    if shown != made:
        raise DoorError(
            f"{what} has the tools {made}, but prompts show {shown}: give {found.__name__} an attribute `tools` with "
            f"the definitions, which is read before anything is made"
        )
    return environment


def end_environment(environment: Environment | AsyncEnvironment) -> None:
    """Ends the processes and threads that an environment which comes with Weir has; others keep theirs."""
    from rewards.environments.user_simulator import UserSimulator  # with aiohttp: a task alone does without

    if isinstance(environment, ToolEnvironment | UserSimulator):
        environment.end()
    elif isinstance(environment, OwnEnvironment | AgentEnvironment):
        environment.close()


def declared_tools(settings: TaskSettings) -> tuple[ToolDefinition, ...]:
    """The tools that every prompt shows; nothing is started.

    Raises:
      DoorError: there is no such environment, or a definition of a tool can't be used.
    """
    if settings.environment == "tools":
        return definitions(settings.episode)
    found = ENVIRONMENT.load(settings.environment)
    if _is_played(found):
        return tools_of_class(found, settings.environment)
    what = f"task.environment {settings.environment!r}: tools"
    declared = getattr(found, "tools", ())
    if not isinstance(declared, list | tuple):
        return ()
    return distinct([read_definition(one, what=what) for one in declared], what=what)


def _is_played(found: Any) -> bool:
    """Whether it is a class that is played in processes of its own."""
    return not inspect.isfunction(found) and not (hasattr(found, "version") and hasattr(found, "max_turns"))
