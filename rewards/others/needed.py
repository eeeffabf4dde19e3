"""Libraries that Weir does without, until a run asks for one."""

from __future__ import annotations

import importlib
from typing import Any

from learner_jax.runtime import WeirError


class MissingLibraryError(WeirError, ImportError):
    """A run asks for an environment whose library isn't installed, or not as it should be."""

    can_heal = False


def needed(module: str, *, extra: str) -> Any:
    """The module of a library.

    Args:
      extra: of Weir, that installs it.

    Raises:
      MissingLibraryError: it can't be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingLibraryError(
            f"{module} can't be imported ({error}): install it with pip install 'weir[{extra}]'"
        ) from error
