"""Where vLLM keeps the parser of its server's command line, which moves from version to version."""

from __future__ import annotations

import importlib
from typing import Any

#: of 0.32, of 0.33
_PLACES = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.common.cli_args")


def cli_args() -> Any:
    """The module with `make_arg_parser` and `validate_parsed_serve_args`.

    Raises:
      ImportError: vLLM is not installed, or keeps it in a place of another version.
    """
    for place in _PLACES:
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if not place.startswith(error.name or "?"):
                raise  # something that the module itself needs
    raise ImportError(f"this vLLM keeps its server's parser in none of {', '.join(_PLACES)}")
