"""Brings faults about in a running job, and heals them: one coroutine per kind, which ends when the fault has."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import os
import random
import signal
import subprocess
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.schema import Config
from learner_jax.runtime import Waits, WaitTimeoutError, WeirError, write_whole
from serving_bridge.database import DiskFullError
from serving_bridge.processes import python_module, with_own_packages
from serving_bridge.queue import TrajectoryQueue
from tools.assembly import RunPaths, build_keys, build_queue, build_registry, run_paths
from tools.testing.chaos import damage, deliveries
from tools.testing.chaos.engines import EngineTraits
from tools.testing.chaos.plan import Fault, Kind
from tools.testing.chaos.processes import alive, pids_of, send
from tools.testing.chaos.wire import WireFault, tell

_POLL_S = 0.02
_STOP_S = 2.0
#: a slow vLLM: its processes run for the first of these times and are stopped for the second, again and again
_RUNS_S, _RESTS_S = 0.02, 0.08
_ROLE_MODULES = {"all": "", "learner": "tools.learner", "worker": "tools.rollout", "controller": "tools.serve"}


class ChaosError(WeirError, RuntimeError):
    """Something that must hold does not, seen while a fault was brought about."""


class SkippedError(Exception):
    """A fault that can't be brought about here and now; says why."""


@dataclass
class Site:
    """A running job, as faults see it.

    Attributes:
      disks: folders that are small file systems of their own, by name; empty where they can't be made.
      log: the run's metrics.
      groups: seen in the queue earlier, for deliveries that come late.
    """

    folder: Path
    config: Config
    engine: EngineTraits
    disks: Mapping[str, Path]
    log: Callable[..., None]
    waits: Waits
    draws: random.Random
    groups: list[deliveries.Delivery] = field(default_factory=list)

    @property
    def paths(self) -> RunPaths:
        return run_paths(self.config)

    @property
    def wire(self) -> Path:
        return self.folder / "wire.json"

    @property
    def clock(self) -> Path:
        return self.folder / "clock.json"

    @property
    def crash(self) -> Path:
        return self.folder / "crash"

    def open_queue(self) -> TrajectoryQueue:
        return build_queue(self.config, self.paths)


async def inject(site: Site, fault: Fault) -> None:
    """Brings one fault about, after its time, and ends when it is healed.

    Raises:
      ChaosError: what must hold does not.
      SkippedError: it can't be brought about.
    """
    await asyncio.sleep(fault.after_s)
    site.log("fault", name=fault.name)
    await _INJECT[fault.kind](site, fault)


async def wait_until(site: Site, what: str, on: str, limit_s: float, holds: Callable[[], bool]) -> None:
    with site.waits.waiting(what, on=on, limit_s=limit_s) as wait:
        while not holds():
            await wait.pause(_POLL_S)


async def _kill(site: Site, fault: Fault) -> None:
    pids = pids_of(site.folder, fault.target)
    if not pids:
        raise SkippedError(f"no {fault.target} runs")
    send(pids, signal.SIGKILL)


async def _crash(site: Site, fault: Fault) -> None:
    write_whole(site.crash, f"{fault.how}:{site.draws.randint(1, 3)}")
    try:
        await wait_until(
            site, f"crash point {fault.how}", fault.target, site.engine.crash_s, lambda: not site.crash.exists()
        )
    except WaitTimeoutError as error:
        site.crash.unlink(missing_ok=True)
        raise SkippedError(str(error)) from error


async def _stop(site: Site, fault: Fault) -> None:
    pids = pids_of(site.folder, fault.target)
    if not pids:
        raise SkippedError(f"no {fault.target} runs")
    send(pids, signal.SIGSTOP)
    try:
        await asyncio.sleep(fault.lasts_s)
    finally:
        send(pids, signal.SIGCONT)


async def _wire(site: Site, fault: Fault) -> None:
    tell(site.wire, WireFault(kind=fault.how, side=fault.target))  # type: ignore[arg-type]  # drawn from those
    try:
        await asyncio.sleep(fault.lasts_s)
    finally:
        tell(site.wire, WireFault())


async def _engine(site: Site, fault: Fault) -> None:
    if site.engine.is_told:
        await _engine_told(site, fault)
    else:
        await _engine_signalled(site, fault)


async def _engine_signalled(site: Site, fault: Fault) -> None:
    """vLLM's engine and worker processes, behind a server that goes on answering."""
    pids = pids_of(site.folder, "core")
    if not pids:
        raise SkippedError("vLLM has no engine processes at that moment")
    if fault.how == "dies":
        send([site.draws.choice(pids)], signal.SIGKILL)
        return
    runs_s, rests_s = (_RUNS_S, _RESTS_S) if fault.how == "slow" else (0.0, fault.lasts_s)
    end_s = asyncio.get_running_loop().time() + fault.lasts_s
    try:
        while asyncio.get_running_loop().time() < end_s:
            send(pids, signal.SIGSTOP)
            await asyncio.sleep(rests_s)
            send(pids, signal.SIGCONT)
            await asyncio.sleep(runs_s)
    finally:
        send(pids, signal.SIGCONT)


async def _engine_told(site: Site, fault: Fault) -> None:
    disturbances: dict[str, dict[str, Any]] = {
        "hangs": {"hangs": True},
        "slow": {"slowness": 5.0},
        "garbage": {"garbage": 5},
        "failures": {"failures": {"/inference/v1/generate": 3, "/update_weights": 1, "/weir_swap": 1}},
        "aborts": {"aborts": 5},
        "dies": {"dies_after_tokens": 7},
        "breaks": {"breaks": 1},
    }
    keys = build_keys(site.config, site.paths)
    rows = [row for row in build_registry(site.paths).replicas() if row.url]
    if not rows:
        raise SkippedError("no engine is known")
    engines = [(row.url, keys.token("control", row.url, row.start)) for row in rows]
    for url, token in engines:
        await asyncio.to_thread(disturb, url, token, disturbances[fault.how])
    try:
        await asyncio.sleep(fault.lasts_s)
    finally:
        for url, token in engines:
            try:
                await asyncio.to_thread(disturb, url, token, {})
            except SkippedError:
                continue  # it died, or is unreachable as it is: the fleet has to see to it


#: Engines are on this machine, whatever proxy the environment names.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def disturb(url: str, token: str, disturbance: dict[str, Any]) -> None:
    """Tells the fake engine behind a URL what is to be wrong with it from now on."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = json.dumps(disturbance).encode()
    request = urllib.request.Request(f"{url}/disturb", body, headers, method="POST")
    try:
        with _DIRECT.open(request, timeout=2.0):
            pass
    except (OSError, ValueError, http.client.HTTPException) as error:  # the wire may be damaged at the same time
        raise SkippedError(f"{url} does not answer: {error}") from error


async def _clock(site: Site, fault: Fault) -> None:
    """A jump of all clocks stays for as long as it lasts; so does the skew of one against the others."""
    write_whole(site.clock, json.dumps({_ROLE_MODULES[fault.target]: fault.amount}))
    try:
        await asyncio.sleep(fault.lasts_s)
    finally:
        site.clock.unlink(missing_ok=True)


async def _full(site: Site, fault: Fault) -> None:
    if fault.target not in site.disks:
        raise SkippedError("small file systems can't be mounted here")
    filler = site.disks[fault.target] / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        await asyncio.sleep(fault.lasts_s)
    finally:
        filler.unlink(missing_ok=True)


async def _damage(site: Site, fault: Fault) -> None:
    if fault.target == "checkpoint":
        await _damage_checkpoint(site, fault)
        return
    path = damage.newest_file(site.paths, fault.target)
    if path is None:
        raise SkippedError(f"there is no {fault.target} to damage")
    damage.damage(path, fault.how, site.draws)


async def _damage_checkpoint(site: Site, fault: Fault) -> None:
    """The learner must refuse it by name, and what the refusal says must lead on."""
    folder = site.paths.checkpoints
    await wait_until(
        site, "two checkpoints with hashes", "learner", site.engine.crash_s, lambda: damage.newest_hashed(folder) > 0
    )
    pids = pids_of(site.folder, "learner")
    send(pids, signal.SIGSTOP)
    step = damage.newest_hashed(folder)
    try:
        if not pids or not step:
            raise SkippedError("the newest checkpoint was not hashed at that moment")
        site.log("damaged", step=step)
        path = damage.largest_file(folder / str(step))
        damage.damage(path, fault.how, site.draws)
        log = site.paths.logs / "learner.log"
        seen = log.stat().st_size if log.exists() else 0
        send(pids, signal.SIGKILL)
    finally:
        send(pids, signal.SIGCONT)

    def refusal() -> str | None:
        with log.open("rb") as file:
            file.seek(seen)
            return damage.refusal(file.read().decode(errors="replace"), folder / str(step))

    await wait_until(
        site, "the refusal of a damaged checkpoint", "learner", site.engine.take_over_s, lambda: bool(refusal())
    )
    text = refusal() or ""
    if path.name not in text:
        raise ChaosError(f"the learner refused checkpoint {step} without naming {path}: {text}")
    older, command = damage.way_back(text)
    if command is None:
        raise ChaosError(f"the learner names no way back from checkpoint {step}: {text}")
    site.log("way_back", step=older)
    subprocess.run(command, shell=True, check=True)


async def _zombie(site: Site, fault: Fault) -> None:
    if fault.target == "consumer":
        if not await deliveries.late_consumer(site.open_queue, site.draws, fault.lasts_s):
            raise SkippedError("no group was leased and lost in time")
        return
    first = pids_of(site.folder, "learner")
    if not first:
        raise SkippedError("no learner runs")
    send(first, signal.SIGSTOP)
    rival = None
    try:
        epoch = deliveries.epoch(site.open_queue)
        with (site.paths.logs / "rival.log").open("ab") as log:
            command = [*python_module("tools.learner"), "--config", str(site.paths.config), "--take-over"]
            rival = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        running = rival

        def taken() -> bool:
            return deliveries.epoch(site.open_queue) > epoch or running.poll() is not None

        await wait_until(site, "a second learner to take over", "second learner", site.engine.take_over_s, taken)
        await asyncio.sleep(fault.lasts_s)
        send(first, signal.SIGCONT)
        # The first finds itself replaced, ends, and is started again; its next life takes over from the second.
        await wait_until(
            site,
            "the learner that was replaced to end",
            "learner",
            site.engine.take_over_s,
            lambda: not any(map(alive, first)),
        )
        await wait_until(
            site,
            "the second learner to end",
            "second learner",
            site.engine.take_over_s,
            lambda: running.poll() is not None,
        )
    finally:
        send(first, signal.SIGCONT)
        if rival is not None and rival.poll() is None:
            rival.kill()
            rival.wait(_STOP_S)
        site.log("rival_ended")


async def _redeliver(site: Site, fault: Fault) -> None:
    deadline = asyncio.get_running_loop().time() + fault.lasts_s
    while True:
        with suppress(DiskFullError):  # by another fault at the same time
            site.groups[:] = deliveries.seen(site.open_queue, site.groups)
            new = deliveries.deliver_again(site.open_queue, site.groups, site.draws)
            if new:
                raise ChaosError(f"the queue took {new} groups a second time")
        if asyncio.get_running_loop().time() >= deadline:
            return
        await asyncio.sleep(0.2)


_INJECT: dict[Kind, Callable[[Site, Fault], Awaitable[None]]] = {
    "kill": _kill,
    "crash": _crash,
    "stop": _stop,
    "wire": _wire,
    "engine": _engine,
    "clock": _clock,
    "full": _full,
    "damage": _damage,
    "zombie": _zombie,
    "redeliver": _redeliver,
}


def heal(site: Site) -> None:
    """Takes back whatever a fault that broke off has left."""
    tell(site.wire, WireFault())
    for path in (site.clock, site.crash, *(disk / "filler" for disk in site.disks.values())):
        path.unlink(missing_ok=True)


def environment(folder: Path, engine_module: str, patch: Path | None) -> dict[str, str]:
    """What a job's processes get on top of this one's environment."""
    site = Path(__file__).parent / "site"
    before = with_own_packages(os.environ).get("PYTHONPATH")
    found = {
        "PYTHONPATH": os.pathsep.join([str(site), *([before] if before else [])]),
        "WEIR_CHAOS_JOB": str(folder),
        "WEIR_CHAOS_WIRE": str(folder / "wire.json"),
        "WEIR_CHAOS_CLOCK": str(folder / "clock.json"),
        "WEIR_CHAOS_ENGINE": engine_module,
        "WEIR_CRASH_AT": f"@{folder / 'crash'}",
        "WEIR_RECORD_HISTORY": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        # The programs are tiny: LLVM shall not work hard on them.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "OPENBLAS_NUM_THREADS": "1",
        # Processes start again and again: the second time shall find what the first compiled.
        "PYTHONDONTWRITEBYTECODE": "",
    }
    return found if patch is None else found | {"WEIR_CHAOS_PATCH": str(patch)}
