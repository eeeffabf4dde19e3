"""A cell: gateway processes with Weir's own admission, limits, queue and choice of replicas; a database; replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving_bridge.access import FreshKeys
from serving_bridge.database import MEMORY, open_database
from serving_bridge.gateway import GatewayError, Replicas
from serving_bridge.routing import CellState, ReplicaRow
from serving_bridge.tenants import (
    TENANTS,
    Accounts,
    Ask,
    DeploymentSecret,
    Price,
    Refusal,
    Tenants,
    TenantsPolicy,
    read_price,
)
from tools.testing.regions.replica import Replica
from tools.testing.regions.shape import ANSWERS, MAX_TOKENS, PROMPT_TOKENS, Shape, TenantPlan
from tools.testing.simulate import EPOCH_S, Process, SimulatedLoop
from tools.testing.tenants import CutDatabase, Fault

SECRET = DeploymentSecret(bytes(range(32)))
POLICY = TenantsPolicy()
#: a request waits so long for its turn
TURN_S = 10.0


@dataclass
class Charge:
    """A request that was admitted somewhere, for the check of limits.

    Attributes:
      used: tokens as settled; None where nobody settled it.
    """

    tenant: str
    cell: str
    began_s: float
    reserved: int
    used: int | None = None
    ended_s: float | None = None

    @property
    def charged(self) -> int:
        return self.reserved if self.used is None else self.used


@dataclass
class Request:
    """One try of a client's request at a cell.

    Attributes:
      outcome: set with (status, code, time of the first token); status None is a connection that broke.
      started_s: time of the first token; None before.
    """

    number: int
    tenant: str
    conversation: str
    length_tokens: int
    outcome: asyncio.Future[tuple[int | None, str | None, float | None]]
    started_s: float | None = None
    charge: Charge | None = None

    def ends(self, status: int | None, code: str | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result((status, code, self.started_s))


@dataclass(eq=False)
class Gateway:
    """One gateway process."""

    process: Process
    tenants: Tenants
    replicas: Replicas
    open: dict[int, Request] = field(default_factory=dict)


class Cell:
    """See the module.

    Attributes:
      charges: of everything admitted here.
      cut_offs, processes: as the bound on limits counts them.
    """

    def __init__(self, name: str, shape: Shape, loop: SimulatedLoop, folder: Path, plans: Sequence[TenantPlan]) -> None:
        self.name, self._shape, self._loop, self._folder = name, shape, loop, folder
        self.speed, self.fault = 1.0, Fault()
        self.charges: list[Charge] = []
        self.cut_offs = self.processes = 0
        self._database = open_database(MEMORY, schema=TENANTS)
        self._keys = self._make_tenants([plan for plan in plans if name in plan.order])
        self._replicas = {
            f"{name}-r{number}": Replica(loop, lambda: self.speed) for number in range(shape.replicas_per_cell)
        }
        self.gateways: list[Gateway] = []
        self.start()

    def _make_tenants(self, plans: Sequence[TenantPlan]) -> dict[str, str]:
        accounts, keys = Accounts(self._database, SECRET, clock=lambda: EPOCH_S), {}
        for plan in plans:
            accounts.add(plan.name, priority=plan.priority)
            limits: dict[str, int | None] = {
                "tokens_per_minute": plan.tokens_per_minute(self.name),
                "token_burst": plan.token_burst(self.name),
            }
            accounts.set_limits(plan.name, limits)
            keys[plan.name] = accounts.create_key(plan.name).key
        accounts.set_limits(None, {"concurrency": self._shape.places})
        accounts.set_price("*", Price(read_price("0.5"), read_price("1.5")))
        return keys

    def start(self) -> None:
        """Starts the cell's gateways, at first and after it was lost; the database is as it was."""
        for replica in self._replicas.values():
            replica.clear()
        self.gateways = [self._start(number) for number in range(self._shape.num_gateways)]

    def _start(self, number: int) -> Gateway:
        self.processes += 1
        process = Process(f"{self.name}-gateway-{self.processes}", self._loop)
        replicas = Replicas(FreshKeys(), self._loop.time)
        replicas.update([ReplicaRow(name, "", "healthy", 1, 1, EPOCH_S) for name in self._replicas])
        tenants = Tenants(
            MEMORY,
            SECRET,
            self._folder / f"{self.name}-host-{number}",
            policy=POLICY,
            name=process.name,
            database=CutDatabase(self._database, self.fault, lambda: False),
            clock=self._loop.time,
            wall=process.wall_clock,
            blocking=self._blocking,
        )
        self._count_cut_offs(tenants)
        gateway = Gateway(process, tenants, replicas)
        process.run_main(self._main(gateway))
        process.spawn(self._look(gateway))
        return gateway

    def _count_cut_offs(self, tenants: Tenants) -> None:
        holdings = tenants._holdings
        real = holdings._cut_off

        def counted(now: float) -> None:
            self.cut_offs += 1
            real(now)

        holdings._cut_off = counted  # type: ignore[method-assign]

    async def _blocking(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await self._loop.run_in_executor(None, call, *arguments)

    @staticmethod
    async def _main(gateway: Gateway) -> None:
        await gateway.tenants.start()
        await gateway.tenants.run()

    async def _look(self, gateway: Gateway) -> None:
        """As `Gateway` does with vLLM's metrics."""
        while True:
            for target in gateway.replicas.targets:
                gateway.replicas.looked(target, self._replicas[target.name].load())
            if (pressure := gateway.replicas.pressure()) is not None:
                gateway.tenants.measured(kv=pressure.kv_usage, queue_s=pressure.queue_s)
            await asyncio.sleep(self._shape.look_every_s)

    def lose(self) -> None:
        """All gateways and replicas end at once; what was told of an answer by then is all that its client gets."""
        for gateway in self.gateways:
            gateway.process.kill()
            gateway.tenants._journal.close(remove=False)
            for request in gateway.open.values():
                if request.charge is not None:
                    request.charge.ended_s = self._loop.time()
                request.ends(None, "lost")
            gateway.open.clear()
        self.gateways = []

    def close(self) -> None:
        """At the end of the simulation."""
        self.lose()
        self._database.close()

    def state(self) -> CellState | None:
        """What a probe of the cell hears; None where nobody answers."""
        if not self.gateways:
            return None
        tenants, pressure = self.gateways[0].tenants, self.gateways[0].replicas.pressure()
        if pressure is None:
            return None
        is_ready = tenants.figures()["keys_age_s"] <= POLICY.max_stale_s
        return CellState(self._loop.time(), is_ready, pressure.kv_usage, pressure.queue_s)

    def send(self, request: Request) -> None:
        """A request reaches one of the cell's gateways, or none."""
        if not self.gateways:
            request.ends(None, "lost")
            return
        gateway = self.gateways[request.number % len(self.gateways)]
        gateway.open[request.number] = request
        gateway.process.spawn(self._answer(gateway, request))

    async def _answer(self, gateway: Gateway, request: Request) -> None:
        try:
            await self._admitted(gateway, request)
        except Refusal as refusal:
            request.ends(refusal.status, refusal.code)
        except GatewayError as error:
            request.ends(error.status, error.code)
        finally:
            gateway.open.pop(request.number, None)

    async def _admitted(self, gateway: Gateway, request: Request) -> None:
        tenants, replicas = gateway.tenants, gateway.replicas
        caller = tenants.authenticate({"authorization": f"Bearer {self._keys.get(request.tenant, '')}"})
        ask = Ask(PROMPT_TOKENS, MAX_TOKENS, ANSWERS, "demo")
        ticket = await tenants.admit(caller, ask, f"{self.name}-{request.number}", TURN_S)
        reserved = PROMPT_TOKENS + ask.completion_tokens
        charge = request.charge = Charge(request.tenant, self.name, self._loop.time(), reserved)
        self.charges.append(charge)
        try:
            target = replicas.take(request.conversation, ANSWERS, rank=lambda row: int(row.state != "healthy"))
        except GatewayError:
            charge.used, charge.ended_s = 0, self._loop.time()
            ticket.cancel()
            raise
        completion = ANSWERS * request.length_tokens
        run = self._replicas[target.name].ask(PROMPT_TOKENS + completion, request.length_tokens, ticket.priority)
        request.started_s = await run.started
        await run.ended
        replicas.give_back(target, ANSWERS, answered=True)
        ticket.settle(PROMPT_TOKENS, completion)
        charge.used, charge.ended_s = PROMPT_TOKENS + completion, self._loop.time()
        request.ends(200, None)
