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
    """Collects the name of every function whose program is compiled inside the block.

    JAX tells of it in its log, which tests before may have switched off.
    """
    names: list[str] = []
    logger, handler = logging.getLogger("jax"), _Names(names)
    below, before = logging.root.manager.disable, [(one, one.disabled, one.level, one.propagate) for one in _of_jax()]
    logging.disable(logging.NOTSET)
    for one, *_ in before:
        one.disabled, one.propagate = False, True
        one.setLevel(logging.NOTSET)
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)
        logging.disable(below)
        for one, disabled, level, propagate in before:
            one.disabled, one.propagate = disabled, propagate
            one.setLevel(level)


def _of_jax() -> list[logging.Logger]:
    names = ["jax", *(name for name in logging.root.manager.loggerDict if name.startswith("jax."))]
    return [logging.getLogger(name) for name in names]
