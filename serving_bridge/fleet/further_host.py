"""A further host of a replica that one host is too small for: joins each start of its first host's server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from serving_bridge.fleet.meeting import Meeting, MeetingPoint
from serving_bridge.processes import (
    GuardedProcess,
    GuardError,
    PrivateFolder,
    PrivateFolderError,
    base_folder,
    log_tail,
)
from serving_bridge.settings import ServingSettings
from serving_bridge.vllm import (
    Access,
    Platform,
    ReplicaStartError,
    check_model,
    check_plugin,
    check_private,
    detect_platform,
    further_host_command,
    server_environment,
)
from serving_bridge.weights import WeightStore

Log = Callable[..., None]
_TICK_S = 0.25
_EXIT_S = 10.0


class FurtherHost:
    """Runs this host's part of a replica's server for as long as its first host wants it to.

    A start is joined once. When this part ends by itself, the server of all hosts can't go on: its first host notices
    that it hangs, and starts it anew, which is another start.

    Args:
      number: of this host among those of the replica, from 1 on.
      store: the weight store, by its folder or as it is, which workers here read too.
    """

    def __init__(
        self,
        settings: ServingSettings,
        point: MeetingPoint,
        *,
        number: int,
        model_dir: Path,
        store: WeightStore | Path,
        log_path: Path,
        log: Log,
        model_family: str = "",
        platform: Platform | None = None,
    ) -> None:
        self._settings, self._point, self._number = settings, point, number
        self._model_dir, self._family = model_dir.absolute(), model_family
        self._store = WeightStore(store, run="") if isinstance(store, Path) else store
        self._log_path, self._log, self._platform = log_path, log, platform
        self._joined = ""
        self._process: GuardedProcess | None = None
        self._log_start = 0

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Follows the first host until `should_stop`.

        Raises:
          ReplicaStartError: this host has no vLLM, plugin or model, or a public address.
        """
        self._platform = self._platform or detect_platform()
        check_plugin()
        check_model(self._model_dir)
        check_private(self._settings.host)
        try:
            while not should_stop():
                self.look()
                time.sleep(_TICK_S)
        finally:
            self._end()

    def look(self) -> None:
        """Joins a new start, and ends what belongs to none any more."""
        wanted = self._point.current()
        if wanted is None or wanted.start != self._joined:
            self._end()
        if wanted is not None and wanted.start != self._joined:
            self._joined = wanted.start
            self._begin(wanted)
        if self._process is not None and (status := self._process.poll()) is not None:
            self._process = None
            tail = log_tail(self._log_path, self._log_start).splitlines()
            self._log("part_ended", number=self._number, status=status, said=tail[-1] if tail else "")

    def _begin(self, meeting: Meeting) -> None:
        assert self._platform is not None
        command = further_host_command(
            self._model_dir, self._settings, self._platform, (meeting.address, meeting.port), self._number
        )
        access = Access(
            base_url="",
            control_token="",
            inference_token="",
            store=self._store.address,
            store_variables=self._store.variables(os.environ),
        )
        try:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log_start = self._log_path.stat().st_size if self._log_path.exists() else 0
            folder = PrivateFolder(base_folder(os.environ))
            self._process = GuardedProcess(
                command,
                env=server_environment(os.environ, self._settings, self._platform, access, folder.path),
                log_path=self._log_path,
                grace_s=_EXIT_S,
                folder=folder,
            )
        except (OSError, GuardError, PrivateFolderError) as error:
            raise ReplicaStartError(f"host {self._number} of {meeting.replica} can't be started: {error}") from error
        self._log("part_started", number=self._number, replica=meeting.replica)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        try:
            process.wait(2 * _EXIT_S)
        except GuardError:  # the guard itself is stopped, or held up
            process.destroy()
