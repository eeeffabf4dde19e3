"""Which programs JAX compiles, by the names of their functions."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import jax

#: of a train step, and of the log-probs around it
STEP_PROGRAMS = frozenset({"gradients", "add", "update", "token_stats"})

_FINISHED = re.compile(r"Finished XLA compilation of jit\((\w+)\)")


class _Names(logging.Handler):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self._names = names

    def emit(self, record: logging.LogRecord) -> None:
        if found := _FINISHED.search(record.getMessage()):
            self._names.append(found[1])


@contextmanager
def compiled_names() -> Iterator[list[str]]:
    """Collects the name of every function whose program is compiled inside the block."""
    names: list[str] = []
    logger, handler = logging.getLogger("jax"), _Names(names)
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)
