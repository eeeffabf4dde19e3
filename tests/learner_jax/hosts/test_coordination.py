"""How JAX is brought together: what it is started with on each host, and what its store's errors mean."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from learner_jax.hosts import coordination
from learner_jax.hosts.coordination import CoordinationService
from learner_jax.hosts.watch import Joined
from learner_jax.hosts.wire import HostError

JOINED = Joined("10.0.0.2", Path("/sockets"))
SOCKET = "unix:/sockets/jax.sock"


class Jax:
    """In place of JAX: notes what it is asked for, in order.

    Attributes:
      answer: of its key-value store, or what that raises.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.state = SimpleNamespace(client=None, service=None)
        self.used = False
        self.answer: Any = None
        self.config: Any = None

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: Any, **named: Any) -> Any:
            self.asked.append((name, *arguments, *sorted(named.items())))
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer if name.startswith(("key", "blocking")) else self

        return ask


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Jax:
    made = Jax()
    bridge = SimpleNamespace(
        backends_are_initialized=lambda: made.used,
        register_backend_factory=made.register_backend_factory,
        make_cpu_client=made.make_cpu_client,
    )
    config = SimpleNamespace(
        update=lambda name, value: made.asked.append(("config", name, value)),
        values={"jax_cpu_collectives_implementation": "gloo"},
    )
    made.config = config
    monkeypatch.setattr(coordination, "xla_bridge", bridge)
    monkeypatch.setattr(coordination, "distributed", SimpleNamespace(global_state=made.state))
    monkeypatch.setattr(coordination, "_jax", made)
    monkeypatch.setattr(coordination, "jax", SimpleNamespace(config=config, errors=jax.errors))
    return made


def later_s(heartbeat_s: float) -> int:
    """JAX's own bound comes well after that of the watch, which says the reason."""
    return coordination._LATER_S + round(coordination._LATER * heartbeat_s)


@pytest.mark.parametrize("index", [0, 1])
def test_only_host_0_serves_and_every_host_connects(fake: Jax, index: int) -> None:
    assert not coordination.is_started()
    coordination.start(JOINED, index, 2, None, heartbeat_s=9.0)
    assert coordination.is_started()
    bound = later_s(9.0)
    assert bound > 9
    service = ("get_distributed_runtime_service", SOCKET, 2, ("heartbeat_timeout", bound), ("shutdown_timeout", bound))
    client = [
        *("get_distributed_runtime_client", SOCKET, index, ("heartbeat_timeout", bound), ("init_timeout", bound)),
        *(("shutdown_on_destruction", False), ("use_compression", True)),
    ]
    assert fake.asked[:-1] == [*([service] if index == 0 else []), tuple(client), ("connect",)]
    assert (fake.state.service is None) == (index == 1)
    found = (fake.state.process_id, fake.state.num_processes, fake.state.coordinator_address)
    assert found == (index, 2, SOCKET)
    registered, platform, factory, *options = fake.asked[-1]
    assert (registered, platform, options) == (
        "register_backend_factory", "cpu", [("fail_quietly", False), ("priority", 0)],
    )  # fmt: skip
    factory()
    assert fake.asked[-2] == (
        "make_gloo_tcp_collectives", ("distributed_client", fake.state.client), ("hostname", "10.0.0.2"),
    )  # fmt: skip


def test_collectives_that_are_not_gloos_are_left_alone(fake: Jax) -> None:
    fake.config.values["jax_cpu_collectives_implementation"] = "mpi"
    coordination.start(JOINED, 1, 2, None, heartbeat_s=9.0)
    assert fake.asked[-1] == ("connect",)


def test_a_process_takes_its_own_devices_only(fake: Jax) -> None:
    coordination.start(JOINED, 1, 2, [2, 3], heartbeat_s=9.0)
    assert fake.asked[:2] == [
        ("config", "jax_cuda_visible_devices", "2,3"),
        ("config", "jax_rocm_visible_devices", "2,3"),
    ]


def test_hosts_come_together_before_jax_is_used(fake: Jax) -> None:
    fake.used = True
    with pytest.raises(RuntimeError, match="JAX was used before the hosts joined"):
        coordination.start(JOINED, 1, 2, None, heartbeat_s=9.0)
    assert fake.asked == []
    assert not coordination.is_started()


@pytest.fixture
def store(fake: Jax) -> CoordinationService:
    fake.state.client = fake
    return CoordinationService()


def test_values_are_put_waited_for_and_deleted(fake: Jax, store: CoordinationService) -> None:
    assert store.put("a", b"1") is True
    fake.answer = b"1"
    assert store.wait("a", 1.5) == b"1"
    assert store.wait("a", 0.0) == b"1"
    store.delete("a")
    assert fake.asked == [
        ("key_value_set_bytes", "a", b"1"),
        ("blocking_key_value_get_bytes", "a", 1500),
        ("blocking_key_value_get_bytes", "a", 1),  # 0 would wait for ever
        ("key_value_delete", "a"),
    ]


def test_what_is_there_already_and_what_does_not_come_are_answers_and_all_else_is_an_error(
    fake: Jax, store: CoordinationService
) -> None:
    fake.answer = jax.errors.JaxRuntimeError("ALREADY_EXISTS: a")
    assert store.put("a", b"1") is False
    fake.answer = jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: a")
    assert store.wait("a", 1.0) is None
    fake.answer = jax.errors.JaxRuntimeError("UNAVAILABLE: gone")
    for ask in (lambda: store.put("a", b"1"), lambda: store.wait("a", 1.0), lambda: store.delete("a")):
        with pytest.raises(HostError, match="coordination service of JAX is out of reach: UNAVAILABLE"):
            ask()
