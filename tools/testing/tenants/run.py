"""Runs seeds: one deployment each, for a while with faults, then until everything is billed."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving_bridge.tenants import Accounts
from tools.testing.tenants.checks import charged, violations
from tools.testing.tenants.gateways import LIMITS, POLICY, Deployment

#: seconds of virtual time: with faults; then, until all that is open has been settled
_FAULTY_S = 30.0
_QUIET_S = 3 * POLICY.answer_lease_s + 4 * POLICY.slices.lease_s
_DAY_S = 86400.0


@dataclass(frozen=True)
class Outcome:
    """How one seed ended.

    Attributes:
      violations: what did not hold.
      charged: tokens by tenant.
    """

    seed: int
    violations: tuple[str, ...]
    admitted: int
    refused: dict[str, int]
    faults: dict[str, int]
    charged: dict[str, int]
    processes: int
    cut_offs: int


class Monkey:
    """Breaks things at random moments; each seed has its own mix of faults."""

    def __init__(self, deployment: Deployment, draws: random.Random) -> None:
        self._deployment, self._draws = deployment, draws
        self.counts: Counter[str] = Counter()
        actions: list[Callable[[], None]] = [self._kill, self._move, self._stop, self._cut, self._cut_after, self._jump]
        self._actions = draws.sample(actions, draws.randint(1, len(actions)))
        self._pause_s = draws.choice((1.0, 3.0, 8.0))

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._draws.expovariate(1 / self._pause_s))
            action = self._draws.choice(self._actions)
            self.counts[action.__name__.strip("_")] += 1
            action()

    def heal(self) -> None:
        for gateway in self._deployment.gateways:
            gateway.fault.before = gateway.fault.after = False
            gateway.process.clock_offset_s = 0.0

    def _number(self) -> int:
        return self._draws.randrange(len(self._deployment.gateways))

    def _kill(self) -> None:
        self._deployment.kill(self._number(), elsewhere=False)

    def _move(self) -> None:
        self._deployment.kill(self._number(), elsewhere=True)

    def _stop(self) -> None:
        self._deployment.gateways[self._number()].process.stop(self._draws.choice((0.3, 2.0, 9.0)))

    def _cut(self) -> None:
        fault = self._deployment.gateways[self._number()].fault
        fault.before = True
        self._deployment.loop.call_later(self._draws.choice((0.5, 3.0, 10.0)), setattr, fault, "before", False)

    def _cut_after(self) -> None:
        """Commits take place, and the gateway does not hear of it."""
        fault = self._deployment.gateways[self._number()].fault
        fault.after = True
        self._deployment.loop.call_later(self._draws.choice((0.6, 2.0, 6.0)), setattr, fault, "after", False)

    def _jump(self) -> None:
        process = self._deployment.gateways[self._number()].process
        process.clock_offset_s += self._draws.choice((-20 * _DAY_S, -5.0, 5.0, 20 * _DAY_S))


def simulate(seed: int, *, faults: bool = True) -> Outcome:
    """One run."""
    draws = random.Random(seed)
    lost = draws.choice((0.0, 0.0, 0.1)) if faults else 0.0
    with tempfile.TemporaryDirectory(prefix="weir-tenants-", dir=_fast_folder()) as folder:
        deployment = Deployment(seed, Path(folder), num_gateways=draws.randint(1, 4), lost=lost)
        monkey = Monkey(deployment, draws)
        work = _drive(deployment, monkey, draws, faults=faults)
        deployment.loop.run_until_complete(deployment.loop.create_task(work))
        rows = list(Accounts(deployment.database).export())
        found = violations(deployment, rows)
        for gateway in deployment.gateways:
            gateway.process.kill()
            deployment.forget(gateway)
        deployment.loop.abandon()
        deployment.database.close()
    totals: Counter[str] = Counter()
    for answer in deployment.admitted.values():
        totals[answer.tenant] += charged(answer)
    return Outcome(
        seed,
        tuple(found),
        len(deployment.admitted),
        dict(deployment.refused),
        dict(monkey.counts),
        dict(totals),
        deployment.processes,
        deployment.cut_offs,
    )


async def _drive(deployment: Deployment, monkey: Monkey, draws: random.Random, *, faults: bool) -> None:
    await asyncio.sleep(0.2)
    breaking = deployment.loop.create_task(monkey.run()) if faults else None
    names = list(LIMITS)
    pace = draws.choice((10.0, 40.0, 120.0))
    while deployment.loop.time() < _FAULTY_S:
        await asyncio.sleep(draws.expovariate(pace))
        number = draws.randrange(len(deployment.gateways))
        gateway = deployment.gateways[number]
        gateway.process.spawn(deployment.one_request(draws.choice(names), number))
    if breaking is not None:
        breaking.cancel()
        monkey.heal()
    await asyncio.sleep(_QUIET_S)
    for number in range(len(deployment.gateways)):  # and every journal that nobody looked at
        deployment.kill(number, elsewhere=False)
    for host in deployment.abandoned_hosts():
        deployment.start_at(host)
    await asyncio.sleep(_QUIET_S)


def _fast_folder() -> str | None:
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() else None
