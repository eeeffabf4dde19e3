"""Mistakes put into Weir's own code on purpose, one at a time: after how many seeds is each noticed?"""

from __future__ import annotations

import contextlib
import importlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from learner_jax.runtime import WeirError
from tools.testing.simulate.run import Mode, simulate

#: where decorators keep the function that they wrap
_WRAPPERS = ("__wrapped__", "__func__", "fget")


class MistakeError(WeirError):
    """A mistake can't be made: the code is another one by now."""


@dataclass(frozen=True)
class Mistake:
    """The one place in a module that reads `was` reads `now`.

    Attributes:
      path: of the module, relative to the repository.
      masked_by: what makes it good, so that nobody can notice it; empty if nothing does.
    """

    name: str
    path: str
    was: str
    now: str
    masked_by: str = ""

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").replace("/", ".")


@dataclass(frozen=True)
class Noticed:
    """After how many seeds a mistake was noticed, and by which invariant; empty if not."""

    mistake: Mistake
    num_seeds: int
    violation: str


def read_mistakes(path: Path) -> list[Mistake]:
    """Those that a TOML file lists as [[mutation]]."""
    return [Mistake(**entry) for entry in tomllib.loads(path.read_text())["mutation"]]


@contextlib.contextmanager
def made(mistake: Mistake) -> Iterator[None]:
    """While the block runs, the module's functions do what the wrong text says; constants and classes stay.

    Raises:
      MistakeError: the text is not there once, or no function changes by it.
    """
    module = importlib.import_module(mistake.module)
    right = _source(module)
    if right.count(mistake.was) != 1:
        raise MistakeError(
            f"{mistake.name}: {mistake.path} has {mistake.was!r} {right.count(mistake.was)} times, not once"
        )
    wrong = compile(right.replace(mistake.was, mistake.now), mistake.path, "exec", dont_inherit=True)
    wrong_codes, right_codes = (
        dict(_codes(wrong)),
        dict(_codes(compile(right, mistake.path, "exec", dont_inherit=True))),
    )
    changed = {name for name, code in wrong_codes.items() if _text(code) != _text(right_codes.get(name))}
    found = [function for function in _functions(module) if function.__qualname__ in changed]
    if not found:
        raise MistakeError(f"{mistake.name}: no function of {mistake.path} is changed by it")
    before = [(function, function.__code__) for function in found]
    try:
        for function in found:
            function.__code__ = wrong_codes[function.__qualname__]
        yield
    finally:
        for function, code in before:
            function.__code__ = code


def try_mistake(job: tuple[Mistake, int, int]) -> Noticed:
    """Runs seeds until one violates something.

    Args:
      job: the mistake, the first seed, and how many at most.
    """
    mistake, first, most = job
    modes: tuple[Mode, Mode] = ("safety", "liveness")
    with made(mistake):
        for seed in range(first, first + most):
            outcome = simulate(seed, modes[seed % 2])
            if outcome.violation:
                return Noticed(mistake, seed - first + 1, outcome.violation)
    return Noticed(mistake, most, "")


def _source(module: ModuleType) -> str:
    assert module.__file__ is not None
    return Path(module.__file__).read_text()


def _codes(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    """(qualified name, code) of every function that is not inside another one."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant.co_qualname, constant
            if "<locals>" not in constant.co_qualname:
                yield from _codes(constant)


def _text(code: CodeType | None) -> object:
    """What a code does, without where its lines are."""
    if code is None:
        return None
    constants = tuple(_text(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts)
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """All that the module's own text makes, but for those inside others."""
    held = [*vars(module).values()]
    while held:
        each = held.pop()
        if isinstance(each, type):
            held += vars(each).values() if each.__module__ == module.__name__ else ()
            continue
        while not isinstance(each, FunctionType) or hasattr(each, "__wrapped__"):
            inner = next((getattr(each, name) for name in _WRAPPERS if getattr(each, name, None) is not None), None)
            if inner is None:
                break
            each = inner
        if isinstance(each, FunctionType) and each.__module__ == module.__name__:
            yield each
