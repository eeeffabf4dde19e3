"""Going on from other weights, once for each time that somebody asks for it, also past a crash.

A run begins anew at the start of a life: the parameters of the checkpoint are exchanged for the asked ones, and the
optimizer's state is a fresh one. The step at which that was done is remembered. A life that resumes at that step, or
before it, does it again: nothing after it was saved. One that resumes later has it in its checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from learner_jax.hosts import Hosts
from learner_jax.runtime import WeirError, read_plain, sync_path, write_durably
from learner_jax.training import Engine, Params, TrainState

_RECORD = "newest.json"
_MAX_BYTES = 2**12


class AnewError(WeirError):
    """What is remembered of beginning anew can't be read."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest time that a run began anew: what was asked for, and the step that it was done at."""

    number: int
    at_step: int


class Anew:
    """Exchanges a run's weights where that is asked for.

    Args:
      folder: of the run, which all hosts see: for the weights, and for what is remembered.
      asked: number of what is asked for, larger for each new time; None for nothing. Must answer soon.
      fetch: writes the weights of such a number into a folder that does not exist yet.
      load: reads parameters from that folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        asked: Callable[[], int | None],
        fetch: Callable[[int, Path], None],
        load: Callable[[Path], Params],
    ) -> None:
        self._folder, self._asked, self._fetch, self._load = folder, asked, fetch, load
        self._record: Record | None = None
        self._is_read = False

    def is_asked(self) -> bool:
        """Whether the run is to begin anew; for the leader.

        Raises:
          AnewError: what is remembered can't be read.
        """
        number, record = self._asked(), self._remembered()
        return number is not None and (record is None or number > record.number)

    def due(self, step: int) -> int | None:
        """What a life that resumes at a step has to begin with; None for its checkpoint. For the leader; fetches it.

        Raises:
          AnewError, OSError: what is remembered can't be read or written.
          WeirError: what is asked for can't be fetched.
        """
        number, record = self._asked(), self._remembered()
        if number is not None and (record is None or number > record.number):
            self._bring(number)
            record = Record(number, step)
            write_durably(self._folder / _RECORD, msgspec.json.encode(record))
            self._record = record
        return record.number if record is not None and step <= record.at_step else None

    def params(self, number: int) -> Params:
        """The parameters that `due` fetched; for every host."""
        return self._load(self._folder / str(number))

    def _bring(self, number: int) -> None:
        target, part = self._folder / str(number), self._folder / f"{number}.part"
        if target.exists():
            return
        self._folder.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        self._fetch(number, part)
        os.rename(part, target)
        sync_path(self._folder)

    def _remembered(self) -> Record | None:
        if not self._is_read:
            try:
                self._record = msgspec.json.decode(read_plain(self._folder, _RECORD, max_bytes=_MAX_BYTES), type=Record)
            except FileNotFoundError:
                self._record = None
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise AnewError(
                    f"{self._folder / _RECORD} is not what was written there: it says at which step this run began "
                    f"anew; expected number and at_step"
                ) from error
            self._is_read = True
        return self._record


def is_asked(anew: Anew | None, hosts: Hosts) -> bool:
    """Whether all hosts are to begin anew; the leader is asked. Errors as of `Anew.is_asked`."""
    if anew is None:
        return False
    return bool(hosts.agree(anew.is_asked() if hosts.is_leader else None, "whether to begin anew"))


def begun(anew: Anew | None, engine: Engine, state: TrainState, step: int, log: Callable[..., None]) -> TrainState:
    """The state that a life begins with which resumes `state` at `step`, on all hosts; step and random key stay.

    Args:
      log: told of "anew" where the weights are exchanged.

    Raises:
      WeirError, OSError: as `Anew.due`; the weights do not fit the model.
    """
    if anew is None:
        return state
    hosts = engine.hosts
    number = hosts.agree(anew.due(step) if hosts.is_leader else None, "whether to begin anew")
    if number is None:
        return state
    fresh = engine.init_state(anew.params(number), seed=0)
    log("anew", number=number, step=step)
    return replace(fresh, step=state.step, key=state.key)
