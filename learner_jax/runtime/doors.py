"""Doors: a setting names Python code, either by an entry point or as "package.module:name"."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from learner_jax.runtime.errors import WeirError
from learner_jax.runtime.text import printable

_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_MAX_LISTED = 30
_MAX_MESSAGE = 500
_DIGEST_CHARACTERS = 12
_PYTHON_LIBRARY = f"{os.path.dirname(os.__file__)}{os.sep}"
#: folders in Python's own library that hold installed packages
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")
_ROOT = Path(__file__).resolve().parents[2]
#: Weir's own packages, whose lines tell a user nothing
_OWN_FOLDERS = tuple(
    f"{_ROOT / name}{os.sep}" for name in ("learner_jax", "serving_bridge", "rewards", "configs", "tools")
)


class DoorError(WeirError, ValueError):
    """What a setting names can't be used: says what was expected, what was found, and what to change."""

    can_heal = False


@dataclass(frozen=True)
class Door:
    """One kind of code that a user can bring.

    The names of what comes with Weir stand here, and as entry points in pyproject.toml. Weir goes by those here: the
    metadata of an installation can be older than a checkout. A name that is built in can't be taken by a package.

    Attributes:
      kind: packages offer theirs as entry points in the group `weir.KIND`.
      setting: that names the code, for errors.
      built_in: name and "package.module:name" of what comes with Weir.
      positional: arguments that the code is called with.
      keywords: arguments that it gets by name.
    """

    kind: str
    setting: str
    built_in: Mapping[str, str] = field(default_factory=dict)
    positional: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()

    def open(self, name: str) -> Callable[..., Any]:
        """The code of this name: a function, or a class.

        Code from outside is imported, which runs its module. The working folder comes last on the search path.

        Raises:
          DoorError: the name is unknown, or what it names can't be imported, called, or called with these arguments.
        """
        found = self.load(name)
        require_call(found, self.positional, self.keywords, what=f"{self.setting} {name!r}")
        return found

    def load(self, name: str) -> Any:
        """The object of this name, however it may be called; raises what `open` does."""
        return load_object(self.target(name), setting=self.setting)

    def version(self, name: str) -> str:
        """The name, and for code from outside a digest of its file. What that file imports does not change it."""
        target = self.target(name)
        file = None if target in self.built_in.values() else source_of(target)
        if file is None:
            return name
        return f"{name}:{hashlib.sha256(file.read_bytes()).hexdigest()[:_DIGEST_CHARACTERS]}"

    def target(self, name: str) -> str:
        """The "package.module:name" that a name stands for; nothing is imported.

        Raises:
          DoorError: the name is unknown.
        """
        return self.built_in.get(name) or (name if ":" in name else self._from_packages(name))

    def with_keywords(self, *keywords: str) -> Door:
        """The same door for code that gets these arguments by name."""
        return replace(self, keywords=keywords)

    def names(self) -> list[str]:
        """The names that need no module, those of installed packages included."""
        return sorted({*self.built_in, *(point.name for point in self._entry_points())})

    def _from_packages(self, name: str) -> str:
        targets = sorted({point.value for point in self._entry_points() if point.name == name})
        if len(targets) > 1:
            raise DoorError(
                f"{self.setting} {name!r} is offered by several packages: {', '.join(targets)}; give one of these"
            )
        if not targets:
            raise DoorError(f"{self.setting} {name!r} is unknown; {self._hint(name)}")
        return targets[0].split("[")[0].strip()

    def _hint(self, name: str) -> str:
        module, _, attribute = name.rpartition(".")
        if re.fullmatch(r"[\w.]+", module) and attribute != "py":
            return f'of a function in a module of your own the name is "{module}:{attribute}"'
        known = self.names()
        own = '"package.module:name" for your own'
        return f"{_nearest(name, known)}known: {', '.join(known)}, or {own}" if known else f"expected {own}"

    def _entry_points(self) -> importlib.metadata.EntryPoints:
        return importlib.metadata.entry_points(group=f"weir.{self.kind}")


def load_object(target: str, *, setting: str) -> Any:
    """The object that "package.module:name" stands for.

    Args:
      setting: that gave it, for errors.

    Raises:
      DoorError: there is no such thing.
    """
    module_name, _, path = target.partition(":")
    if not _TARGET.fullmatch(target) or module_name.endswith(".py"):
        plain = module_name.removesuffix(".py").replace("/", ".").strip(".")
        meant = f'; did you mean "{plain}:{path}"?' if _TARGET.fullmatch(f"{plain}:{path}") else ""
        raise DoorError(f'{setting} {target!r} is not of the form "package.module:name"{meant}')
    found: Any = _module(module_name, setting=f"{setting} {target!r}")
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            where = _place(module_name)
            raise DoorError(f"{setting} {target!r}: {where} has no {part!r}; {_offers(found, part)}") from None
    return found


def require_call(found: Any, positional: tuple[str, ...], keywords: tuple[str, ...], *, what: str) -> None:
    """Raises `DoorError` unless `found` can be called with so many arguments and these keywords."""
    named = [f"{name}=..." for name in keywords]
    expected = f"({', '.join([*positional, *named])})"
    if not callable(found):
        raise DoorError(f"{what} is of type {type(found).__name__}, expected a function or class that takes {expected}")
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # code in C may have none
        return
    try:
        signature.bind(*positional, **dict.fromkeys(keywords))
    except TypeError as error:
        raise DoorError(f"{what} takes {signature}, expected {expected}: {error}") from None


def source_of(target: str) -> Path | None:
    """The file of a target's module, found without running it; None where there is none."""
    _search_working_folder()
    try:
        spec = importlib.util.find_spec(target.partition(":")[0])
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def raised(error: BaseException) -> str:
    """An error of a user's code on one line: kind, message, and the file and line of that code that raised it.

    The message is cut where it is long: it may hold all that the code was given. An error that Weir raised about what
    the code gave has no file and line.
    """
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  (the error's own code fails)
        message = "its message can't be read"
    cut = message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]}..."
    said = printable(f"{type(error).__name__}: {cut}".replace("\n", " "))
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = ("<", *_OWN_FOLDERS)
    outside = [(file, line) for file, line in frames if not (file.startswith(own) or _of_python(file))]
    here = [(file, line) for file, line in outside if file.startswith(os.getcwd())] or outside
    return f"{said} ({os.path.basename(here[-1][0])}, line {here[-1][1]})" if here else said


def _of_python(file: str) -> bool:
    """Whether a file belongs to Python's own library."""
    folder, _, _ = file.removeprefix(_PYTHON_LIBRARY).partition(os.sep)
    return file.startswith(_PYTHON_LIBRARY) and folder not in _PACKAGE_FOLDERS


def _module(name: str, *, setting: str) -> ModuleType:
    _search_working_folder()
    if hidden_by := _hides(name):
        raise DoorError(
            f"{setting}: {_own_file(name)} is hidden by {hidden_by}, whose name it has; rename it, and the module in "
            f"the setting"
        )
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise DoorError(f"{setting}: {_place(name)} needs the module {error.name!r}, which is not there") from error
        raise DoorError(f"{setting}: there is no module {error.name!r}; {_near_files(error.name)}{_looked()}") from None
    except (Exception, SystemExit) as error:
        raise DoorError(f"{setting}: {_place(name)} can't be imported: {raised(error)}") from error


def _search_working_folder() -> None:
    """Last, so that no file of a user's folder takes the place of a package."""
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()


def _hides(name: str) -> str:
    """Where the package is that is imported instead of a module in the working folder; empty if none is."""
    if _own_file(name) is None:
        return ""
    try:
        spec = importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        return ""
    if spec is None:
        return ""
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else ())]
    here = Path.cwd().resolve()
    return "" if any(Path(place).resolve().is_relative_to(here) for place in places) else str(places[0])


def _own_file(name: str) -> Path | None:
    base = Path.cwd().joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _place(module: str) -> str:
    file = source_of(module)
    return f"{module} ({file})" if file else module


def _looked() -> str:
    folders = [str(Path.cwd()), *(path for path in sys.path if path and os.path.isdir(path))]
    return f"looked in {', '.join(dict.fromkeys(folders))}"


def _near_files(module: str) -> str:
    return _nearest(module, [path.stem for path in Path.cwd().glob("*.py")])


def _offers(holder: Any, name: str) -> str:
    names = sorted(key for key in vars(holder) if not key.startswith("_")) if hasattr(holder, "__dict__") else []
    more = ", ..." if len(names) > _MAX_LISTED else ""
    return f"{_nearest(name, names)}it has {', '.join(names[:_MAX_LISTED]) or 'nothing'}{more}"


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}? " if close else ""
