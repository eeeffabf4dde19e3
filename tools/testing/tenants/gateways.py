"""A deployment of several gateways in one virtual time, with one database, and what can go wrong with them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from serving_bridge.database import MEMORY, Database, DatabaseError, Session, open_database
from serving_bridge.tenants import (
    TENANTS,
    Accounts,
    Ask,
    Caller,
    DeploymentSecret,
    Price,
    QueueBounds,
    Refusal,
    SlicePolicy,
    Tenants,
    TenantsPolicy,
    read_price,
)
from tools.testing.simulate import EPOCH_S, Process, SimulatedLoop

T = TypeVar("T")

SECRET = DeploymentSecret(bytes(range(32)))
POLICY = TenantsPolicy(
    slices=SlicePolicy(lease_s=4.0, idle_s=6.0),
    queue=QueueBounds(per_tenant=8, all=24),
    interval_s=0.5,
    max_stale_s=1e9,  # how long keys live is another test's
    answer_lease_s=12.0,
)
#: name -> limits. The first is flooded, the second has a budget, the third shares its concurrency.
LIMITS: dict[str, dict[str, int | None]] = {
    "flood": {"requests_per_minute": 120, "tokens_per_minute": 12_000, "token_burst": 4_000},
    "budget": {"month_tokens": 40_000, "month_nanos": 30_000_000},
    "places": {"concurrency": 6, "requests_per_minute": 600},
}
DEPLOYMENT: dict[str, int | None] = {"concurrency": 16, "tokens_per_minute": 60_000}
LARGEST = 1_500


@dataclass
class Admitted:
    """An answer as its client knows it.

    Attributes:
      process: the gateway process that admitted it.
      ended_s: when it was settled or cancelled, or its process was killed.
      usage: (prompt, completion) as it was settled; None if it never was.
    """

    response_id: str
    tenant: str
    process: str
    began_s: float
    prompt_tokens: int
    completion_tokens: int
    ended_s: float | None = None
    usage: tuple[int, int] | None = None
    cancelled: bool = False

    @property
    def reserved(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass
class Fault:
    """What stands between a gateway and the database."""

    before: bool = False
    after: bool = False


class CutDatabase:
    """The database as one gateway reaches it; can be cut off before a transaction, or after its commit."""

    def __init__(self, inner: Database, fault: Fault, odds: Callable[[], bool]) -> None:
        self._inner, self._fault, self._odds = inner, fault, odds

    @property
    def name(self) -> str:
        return self._inner.name

    def write(self, work: Callable[[Session], T], *, synced: bool = True) -> T:
        self._check(self._fault.before)
        result = self._inner.write(work, synced=synced)
        self._check(self._fault.after or self._odds())
        return result

    def read(self, work: Callable[[Session], T]) -> T:
        self._check(self._fault.before)
        return self._inner.read(work)

    def close(self) -> None:
        """Others use it."""

    def _check(self, is_cut: bool) -> None:
        if is_cut:
            raise DatabaseError("cut off")


@dataclass
class Gateway:
    """One place where a gateway process runs, and is started again."""

    host: Path
    process: Process
    tenants: Tenants
    fault: Fault = field(default_factory=Fault)


class Deployment:
    """Gateways, their database, and all that clients saw.

    Attributes:
      admitted: by response id.
      cut_offs: times that a gateway noticed that its lease had run out.
      processes: gateway processes that ever lived.
    """

    def __init__(self, seed: int, folder: Path, *, num_gateways: int, lost: float = 0.0) -> None:
        self.draws = random.Random(seed)
        self.loop = SimulatedLoop(lambda: self.draws.choice((0.0, 0.005, 0.05)))
        self.database = open_database(MEMORY, schema=TENANTS)
        self._folder, self._lost = folder, lost
        self.admitted: dict[str, Admitted] = {}
        self.refused: Counter[str] = Counter()
        self.cut_offs = self.processes = 0
        self.running: Counter[tuple[str, str]] = Counter()
        self.most_running: Counter[str] = Counter()
        self._numbers = 0
        self.callers: dict[str, Caller] = {}
        self._make_tenants()
        self.gateways = [self._start(folder / f"host-{number}") for number in range(num_gateways)]

    def _make_tenants(self) -> None:
        accounts = Accounts(self.database, SECRET, clock=lambda: EPOCH_S)
        self.keys = {}
        for name, limits in LIMITS.items():
            accounts.add(name, priority="paid" if name == "places" else "free")
            accounts.set_limits(name, limits)
            self.keys[name] = accounts.create_key(name).key
        accounts.set_limits(None, DEPLOYMENT)
        accounts.set_price("*", Price(read_price("0.5"), read_price("1.5")))

    def _start(self, host: Path) -> Gateway:
        self.processes += 1
        process = Process(f"gateway-{self.processes}", self.loop)
        fault = Fault()
        gateway = Gateway(host, process, self._tenants(host, process, fault), fault)
        process.run_main(self._main(gateway))
        return gateway

    def _tenants(self, host: Path, process: Process, fault: Fault) -> Tenants:
        database = CutDatabase(self.database, fault, lambda: self.draws.random() < self._lost)
        made = Tenants(
            MEMORY,
            SECRET,
            host,
            policy=POLICY,
            name=process.name,
            database=database,
            clock=lambda: 1000.0 * self.processes_before(process) + self.loop.time(),
            wall=process.wall_clock,
            blocking=self._blocking,
        )
        holdings = made._holdings
        real = holdings._cut_off

        def counted(now: float) -> None:
            self.cut_offs += 1
            real(now)

        holdings._cut_off = counted  # type: ignore[method-assign]
        return made

    @staticmethod
    def processes_before(process: Process) -> int:
        """A number of its own: monotonic clocks of two processes have nothing in common."""
        return int(process.name.rpartition("-")[2])

    async def _blocking(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await self.loop.run_in_executor(None, call, *arguments)

    async def _main(self, gateway: Gateway) -> None:
        while True:
            try:
                await gateway.tenants.start()
                break
            except DatabaseError:
                await asyncio.sleep(0.2)
        await gateway.tenants.run()

    def kill(self, number: int, *, elsewhere: bool) -> None:
        """Kills a gateway and starts it again; elsewhere: on another host, so that its journal waits for somebody."""
        gateway = self.gateways[number]
        gateway.process.kill()
        self.forget(gateway)
        host = self._folder / f"host-of-{self.processes}" if elsewhere else gateway.host
        self.gateways[number] = self._start(host)

    def abandoned_hosts(self) -> list[Path]:
        """Hosts where a journal lies and no gateway runs."""
        used = {gateway.host for gateway in self.gateways}
        return sorted(path for path in self._folder.iterdir() if path not in used)

    def start_at(self, host: Path) -> None:
        """One more gateway."""
        self.gateways.append(self._start(host))

    def forget(self, gateway: Gateway) -> None:
        """The kernel closes a dead process's files, and its answers go with it."""
        gateway.tenants._journal.close(remove=False)
        for answer in self.admitted.values():
            if answer.process == gateway.process.name and answer.ended_s is None:
                self._ends(answer)

    async def one_request(self, name: str, number: int) -> None:
        """A client's request from the first byte to the end of the answer; refusals are counted."""
        gateway, draws = self.gateways[number], self.draws
        if not gateway.process.is_alive:
            return
        ask = Ask(draws.randint(1, 300), draws.choice((50, 300, LARGEST - 300)), model="demo")
        self._numbers += 1
        response_id = f"r{self._numbers}"
        try:
            caller = gateway.tenants.authenticate({"authorization": f"Bearer {self.keys[name]}"})
            ticket = await gateway.tenants.admit(caller, ask, response_id, timeout_s=draws.choice((0.2, 2.0)))
        except Refusal as refusal:
            self.refused[type(refusal).__name__] += 1
            return
        answer = Admitted(
            response_id, name, gateway.process.name, self.loop.time(), ask.prompt_tokens, ask.completion_tokens
        )
        self.admitted[response_id] = answer
        for scope in (name, "deployment"):
            self.running[scope, ""] += 1
            self.most_running[scope] = max(self.most_running[scope], self.running[scope, ""])
        fate = draws.random()
        await asyncio.sleep(draws.expovariate(1.0))
        if fate < 0.05:
            # Nobody settles it: its place is free once its lease, which began with it, is over.
            await asyncio.sleep(max(0.0, answer.began_s + POLICY.answer_lease_s - self.loop.time()))
            self._ends(answer)
            return
        if fate < 0.1:
            answer.cancelled = True
            ticket.cancel()
        else:
            answer.usage = (ask.prompt_tokens, draws.randint(0, ask.completion_tokens))
            ticket.settle(*answer.usage)
            if draws.random() < 0.1:
                ticket.settle(ask.prompt_tokens, 0)  # told twice: the first counts
                ticket.cancel()
        self._ends(answer)

    def _ends(self, answer: Admitted) -> None:
        if answer.ended_s is None:
            answer.ended_s = self.loop.time()
            for scope in (answer.tenant, "deployment"):
                self.running[scope, ""] -= 1
