"""Modules that are loaded at their first use: for libraries that import others which few of their users need."""

from __future__ import annotations

import importlib.util
import sys
import threading
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def import_when_used(*names: str) -> None:
    """Has modules load when something first looks into them, and not when they are imported.

    Call it before the library that imports them is imported. The packages that they lie in are imported now. A module
    that is not installed, or is imported already, is left as it is. What loading raises, the first use raises.

    `importlib.util.LazyLoader` is not used: in Python 3.11 a second import of its modules loads them.

    Args:
      names: of modules written in Python, e.g. "scipy.signal". A library that imports from one of them by name, `from
        scipy.signal import x`, loads it at once.

    Source: https://docs.python.org/3/reference/datamodel.html#customizing-module-attribute-access
    """
    for name in names:
        if name in sys.modules or (spec := _spec(name)) is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        vars(module).pop("__path__", None)  # an import of what lies in it loads it, too
        module.__class__ = _late_class(spec)
        sys.modules[name] = module
        package, _, attribute = name.rpartition(".")
        if package:
            setattr(sys.modules[package], attribute, module)


def _spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:  # the package that it lies in
        return None


def _late_class(spec: ModuleSpec) -> type[ModuleType]:
    """Of a module that is loaded once an attribute is asked for that it does not have yet."""
    lock = threading.RLock()
    is_loading = False

    class Late(ModuleType):
        def __getattr__(self, name: str) -> Any:
            nonlocal is_loading
            with lock:
                if type(self) is Late and not is_loading:
                    is_loading = True
                    try:
                        _load(self, spec)
                    finally:
                        is_loading = False
                    self.__class__ = ModuleType  # type: ignore[assignment]  # the documented way
            try:
                return vars(self)[name]
            except KeyError:
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None

    return Late


def _load(module: ModuleType, spec: ModuleSpec) -> None:
    if spec.submodule_search_locations is not None:
        module.__path__ = spec.submodule_search_locations
    assert spec.loader is not None
    spec.loader.exec_module(module)
