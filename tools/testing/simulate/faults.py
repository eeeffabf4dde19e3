"""What goes wrong in a simulated run and when, drawn from the seed: weather, and a disaster every now and then."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from tools.testing.fake_vllm import Disturbance
from tools.testing.simulate.loop import Process
from tools.testing.simulate.network import Weather
from tools.testing.simulate.world import Odds, World


class Monkey:
    """Breaks things at random moments until told to stop.

    Each seed has its own mix: most have a few kinds of faults, so that rare coincidences of two are not drowned.
    """

    def __init__(self, world: World, draws: random.Random) -> None:
        self._world, self._draws = world, draws
        self._names = ("learner", "fleet", *world.setting.workers)
        self._pause_s = draws.choice((0.5, 1.0, 3.0))
        actions = (
            self._kill,
            self._kill_engine,
            self._stop,
            self._stop_engine,
            self._partition,
            self._disturb,
            self._damage,
            self._jump_clock,
            self._second_learner,
            self._power,
        )
        self._actions = draws.sample(actions, draws.randint(1, len(actions)))

    def begin(self) -> None:
        """Sets what goes wrong all the time."""
        draws = self._draws
        self._world.network.weather = Weather(
            late=draws.choice((0.0, 0.02, 0.1)),
            late_s=draws.choice((0.2, 1.0, 4.0)),
            reset=draws.choice((0.0, 0.01, 0.05)),
            lost=draws.choice((0.0, 0.0, 0.01)),
            doubled=draws.choice((0.0, 0.05)),
        )
        self._world.odds = Odds(
            database=draws.choice((0.0, 0.01, 0.05)),
            crash=draws.choice((0.0, 0.003, 0.01)),
            power=draws.choice((0.0, 0.3, 1.0)),
            replaced=draws.choice((0.0, 0.05, 0.15)),
            bad_start=draws.choice((0.0, 0.2)),
            bad_load=draws.choice((0.0, 0.3)),
        )

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._draws.expovariate(1 / self._pause_s))
            action = self._draws.choice(self._actions)
            self._world.counts[action.__name__.strip("_")] += 1
            action()

    def heal(self) -> None:
        """From now on nothing goes wrong any more; what went wrong is left as it is."""
        world = self._world
        world.network.weather, world.odds = Weather(), Odds()
        for _, engine in world.network.engines.values():
            engine.disturbance = Disturbance()
            engine.notice()
            engine.worker.breaks = 0
        for process in world.processes.values():
            process.clock_offset_s = 0.0

    def _pick(self) -> Process:
        return self._world.processes[self._draws.choice(self._names)]

    def _engines(self) -> list[str]:
        return [url for url, (process, _) in self._world.network.engines.items() if process.is_alive]

    def _kill(self) -> None:
        process = self._pick()
        self._world.trace("kill", process.name)
        process.kill()

    def _kill_engine(self) -> None:
        for url in self._draws.sample(self._engines(), min(1, len(self._engines()))):
            self._world.trace("kill", url)
            self._world.network.engines[url][0].kill()

    def _stop(self) -> None:
        process, seconds = self._pick(), self._draws.choice((0.3, 2.0, 6.0))
        self._world.trace("stop", process.name, seconds)
        process.stop(seconds)

    def _stop_engine(self) -> None:
        for url in self._draws.sample(self._engines(), min(1, len(self._engines()))):
            seconds = self._draws.choice((0.3, 2.0, 8.0))
            self._world.trace("stop", url, seconds)
            self._world.network.engines[url][0].stop(seconds)

    def _partition(self) -> None:
        clients = self._draws.sample(self._names, 2)
        cut = {(client, url) for client in clients for url in self._engines() if self._draws.random() < 0.7}
        self._world.trace("partition", sorted(cut))
        self._world.network.weather.partitions |= cut
        self._world.loop.call_later_for_nobody(
            self._draws.choice((0.5, 3.0, 8.0)), self._world.network.weather.partitions.difference_update, cut
        )

    def _disturb(self) -> None:
        for url in self._draws.sample(self._engines(), min(1, len(self._engines()))):
            engine, draws = self._world.network.engines[url][1], self._draws
            disturbance = draws.choice(
                (
                    Disturbance(hangs=True),
                    Disturbance(slowness=20.0),
                    Disturbance(garbage=3),
                    Disturbance(aborts=3),
                    Disturbance(dies_after_tokens=draws.randint(1, 20)),
                    Disturbance(failures=Counter({draws.choice(_ROUTES): draws.randint(1, 4)})),
                )
            )
            self._world.trace("disturb", url, disturbance)
            engine.disturbance = disturbance
            engine.notice()

    def _damage(self) -> None:
        """Changes a byte of the newest version, or cuts it off."""
        versions, draws = self._world.files.versions(), self._draws
        if versions:
            folder = self._world.weights / f"v{versions[-1]:08d}"
            path = draws.choice(sorted(folder.glob("*.safetensors")))
            content = bytearray(path.read_bytes())
            content[draws.randrange(len(content))] ^= 0x40
            self._world.trace("damage", path.relative_to(self._world.weights))
            path.write_bytes(content if draws.random() < 0.7 else content[:-9])

    def _power(self) -> None:
        """Rarely: everything begins anew after it."""
        if self._draws.random() < 0.3:
            self._world.fail()

    def _jump_clock(self) -> None:
        process = self._pick()
        process.clock_offset_s += self._draws.choice((-20.0, -2.0, 2.0, 20.0))
        self._world.trace("clock", process.name, process.clock_offset_s)

    def _second_learner(self) -> None:
        """The learner is thought dead, and another takes over; then the first goes on, also with a save."""
        first, learner = self._world.processes["learner"], self._world.learner_now
        if first.is_alive and not self._world.finished and learner is not None and learner.has_begun:
            self._world.trace("second learner")
            first.stop(self._draws.uniform(0.5, 4.0))
            self._world.replace(first)


_ROUTES = (
    "/resume",
    "/is_paused",
    "/start_weight_update",
    "/update_weights",
    "/weir_swap",
    "/weir_serve",
    "/collective_rpc",
    "/abort_requests",
    "/inference/v1/generate",
)
