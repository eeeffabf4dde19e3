"""One vLLM server as a supervised child: its flags and environment, readiness, warm-up, drain and stop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from learner_jax.contracts import WeightManifest
from learner_jax.runtime import Waits
from serving_bridge.access import FreshKeys, Keys, new_start
from serving_bridge.fleet.meeting import MeetingPoint
from serving_bridge.fleet.weight_round import RoundOutcome, run_round
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
    ReplicaError,
    ReplicaStartError,
    VllmClient,
    check_model,
    check_plugin,
    check_private,
    claim_port,
    detect_platform,
    server_command,
    server_environment,
)
from serving_bridge.weights import WeightStore

_POLL_S = 0.25
#: between two looks whether a server answers yet
_START_POLL_S = 0.05
_WARM_UP_BATCHES = 2
_WARM_UP_TOKENS = 4
#: time beyond the drain that vLLM's processes get to end before SIGKILL
_EXIT_S = 10.0


class _NotDrainedError(Exception):
    """Answers are still in flight."""


class Replica:
    """Owns one vLLM server process and the client for it.

    Args:
      name: for logs, e.g. "replica-0".
      model_dir: Hugging Face model folder with a tokenizer.
      session: aiohttp's, or like it; used for all requests; stays the caller's.
      log_path: file that the server's output is appended to.
      port: 0 picks a free one.
      platform: found out from what is installed if None.
      waits: where its waits are seen.
      keys: its tokens come from these; by default from new ones, and only `client` can ask it then.
      store: whose versions it may be brought to, by its folder or as it is; by default it takes none.
      also_open: further paths of vLLM that take POST with the inference token.
      model_family: name of the model's family, where it is none of Weir's.
      point: where its further hosts join, if it has some.
    """

    def __init__(
        self,
        name: str,
        model_dir: str | Path,
        settings: ServingSettings,
        session: Any,
        *,
        log_path: str | Path,
        port: int = 0,
        platform: Platform | None = None,
        waits: Waits | None = None,
        keys: Keys | None = None,
        store: WeightStore | Path | None = None,
        also_open: Sequence[str] = (),
        model_family: str = "",
        point: MeetingPoint | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.log_path = Path(log_path)
        self._model_dir = Path(model_dir).absolute()
        self._wanted_port = port
        self._platform = platform
        self._waits = waits or Waits()
        self._session = session
        self._keys = keys or FreshKeys()
        self._store = WeightStore(store, run="") if isinstance(store, Path) else store
        self._also_open = also_open
        self._model_family = model_family
        self._point = point
        self._start = ""
        self._process: GuardedProcess | None = None
        self._client: VllmClient | None = None

    @property
    def client(self) -> VllmClient:
        if self._client is None:
            raise ReplicaError(f"{self.name} was never started")
        return self._client

    @property
    def base_url(self) -> str:
        return self.client.base_url

    @property
    def start_id(self) -> str:
        """Names the start of the server that its tokens are for; empty before the first."""
        return self._start

    def exit_status(self) -> int | None:
        """Exit status of the server, None while it runs."""
        return self._process.poll() if self._process is not None else None

    async def start(self) -> None:
        """Starts the server and returns when it is warm; no policy version names its weights until a round succeeds.

        Raises:
          ReplicaStartError: vLLM, plugin, model or port is not there; or the server ended, or took longer than
            `serving.start_timeout_s`. Nothing is left running.
        """
        if self._process is not None and self._process.poll() is None:
            raise ReplicaStartError(f"{self.name} already runs")
        platform = self._platform or detect_platform()
        check_plugin()
        check_model(self._model_dir)
        check_private(self.settings.host)
        port = claim_port(self.settings.host, self._wanted_port)
        log_start = self._start_process(platform, port)
        try:
            with self._waits.waiting(
                "a server that answers and samples",
                on=self.name,
                limit_s=self.settings.start_timeout_s,
                setting="serving.start_timeout_s",
                error=ReplicaStartError,
            ) as wait:
                while not await self.client.is_healthy():
                    self._check_process(log_start)
                    wait.hint(f"end of {self.log_path}:\n{log_tail(self.log_path, log_start)}")
                    await wait.pause(_START_POLL_S)
                wait.hint("it answers, but does not sample")
                async with wait.bound():
                    await self._warm_up()
        except BaseException:
            await self.kill()
            raise

    def _start_process(self, platform: Platform, port: int) -> int:
        """Starts the server with tokens of its own; returns where its log begins."""
        url, start = f"http://{_url_host(self.settings.host)}:{port}", new_start()
        access = Access(
            base_url=url,
            control_token=self._keys.token("control", url, start),
            inference_token=self._keys.token("inference", url, start),
            store=self._store.address if self._store is not None else "",
            store_variables=self._store.variables(os.environ) if self._store is not None else {},
            also_open=self._also_open,
            model_family=self._model_family,
        )
        try:
            command = server_command(self._model_dir, self.settings, platform, port, meeting=self._meet(start))
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
            folder = PrivateFolder(base_folder(os.environ))
            self._process = GuardedProcess(
                command,
                env=server_environment(os.environ, self.settings, platform, access, folder.path),
                log_path=self.log_path,
                grace_s=self.settings.drain_timeout_s + _EXIT_S,
                folder=folder,
            )
        except (OSError, GuardError, PrivateFolderError) as error:
            raise ReplicaStartError(f"{self.name} can't be started: {error}") from error
        self._start = start
        self._client = VllmClient(
            url, self._session, control_timeout_s=self.settings.update_timeout_s, token=access.control_token
        )
        return log_start

    def _meet(self, start: str) -> tuple[str, int] | None:
        """Has the replica's further hosts join; address and port of this one for it."""
        if self.settings.hosts_per_replica == 1:
            return None
        if self._point is None:
            raise ReplicaStartError(f"{self.name} has several hosts (serving.hosts_per_replica), but no run to meet in")
        port = claim_port(self.settings.host, 0)
        self._point.call(start, self.settings.host, port)
        return self.settings.host, port

    async def update(
        self, store: WeightStore, manifest: WeightManifest, *, round_id: str | None = None
    ) -> RoundOutcome:
        """Runs one weight round; see `run_round`.

        Raises:
          ReplicaError: the server was never started, or with another store.
        """
        started_on = self._store.address if self._store is not None else None
        if self._client is not None and store.address != started_on:
            raise ReplicaError(f"{self.name} was started on weight store {started_on}, got {store.address}")
        return await run_round(
            self.client, manifest, self.settings, round_id=round_id, waits=self._waits, name=self.name
        )

    async def drain(self) -> bool:
        """Waits for answers in flight, at most `serving.drain_timeout_s`; whoever dispatches must have stopped.

        Returns:
          Whether none is left.
        """
        with self._waits.waiting(
            "answers in flight",
            on=self.name,
            limit_s=self.settings.drain_timeout_s,
            setting="serving.drain_timeout_s",
            error=_NotDrainedError,
        ) as wait:
            try:
                async with wait.bound():
                    while await self.client.num_requests() > 0:
                        await wait.pause(_POLL_S)
            except (ReplicaError, _NotDrainedError):
                return False
        return True

    async def stop(self) -> None:
        """Asks the server to end (answers in flight get `serving.drain_timeout_s`), then makes sure that it did."""
        if self._process is not None:
            self._process.terminate()
            self._leave()
            await self._wait_for_end(self.settings.drain_timeout_s + 2 * _EXIT_S)

    async def kill(self) -> None:
        """Ends the server and all its processes now."""
        if self._process is not None:
            self._process.kill()
            self._leave()
            await self._wait_for_end(_EXIT_S)

    def _leave(self) -> None:
        """Has the further hosts end their parts."""
        if self._point is not None:
            with suppress(OSError):  # the next start ends them
                self._point.end()

    async def _wait_for_end(self, limit_s: float) -> None:
        process = self._process
        assert process is not None
        with self._waits.waiting("the end of its server", on=self.name, limit_s=limit_s):
            try:
                await asyncio.to_thread(process.wait, limit_s)
            except GuardError:  # the guard itself is stopped, or held up
                await asyncio.to_thread(process.destroy)

    def _check_process(self, log_start: int) -> None:
        status = self.exit_status()
        if status is not None:
            raise ReplicaStartError(
                f"{self.name} ended with status {status} while starting; end of {self.log_path}:\n"
                f"{log_tail(self.log_path, log_start)}"
            )

    async def _warm_up(self) -> None:
        timeout_s = self.settings.start_timeout_s
        num = min(8, self.settings.max_num_seqs)
        max_tokens = min(_WARM_UP_TOKENS, self.settings.max_model_len - 1)
        try:
            for _ in range(_WARM_UP_BATCHES):
                await self.client.warm_up([0], n=num, max_tokens=max_tokens, timeout_s=timeout_s)
            await self.client.prompt_logprobs([0] * min(8, self.settings.max_model_len - 1), timeout_s=timeout_s)
        except ReplicaError as error:
            raise ReplicaStartError(f"{self.name} started but does not sample: {error}; see {self.log_path}") from error


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
