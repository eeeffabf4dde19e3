"""Hosts of one learner that do not share what they must are refused at start, all with the same words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from learner_jax.hosts import shared_folders
from learner_jax.hosts.hosts import HostError, Hosts
from learner_jax.hosts.shared_folders import require_shared
from tests.support.host_processes import Processes, fill
from tests.support.host_threads import on_hosts


def each(count: int, program: Callable[[Hosts], None]) -> list[str]:
    """What each host was refused with; empty where it was not."""

    def run(hosts: Hosts) -> str:
        try:
            program(hosts)
        except HostError as error:
            return str(error)
        return ""

    return on_hosts(count, run)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_folders, "_SEEN_WITHIN_S", 0.5)


def test_hosts_with_one_folder_go_on_and_leave_nothing_in_it(tmp_path: Path) -> None:
    assert each(4, lambda hosts: require_shared(hosts, tmp_path / "new" / "run", "run.directory")) == [""] * 4
    assert list((tmp_path / "new" / "run").iterdir()) == []
    (tmp_path / "link").symlink_to(tmp_path / "new")
    places = [tmp_path / "new", tmp_path / "link"]
    assert each(2, lambda hosts: require_shared(hosts, places[hosts.index], "run.directory")) == ["", ""]


@pytest.mark.parametrize("apart", [[0], [1], [1, 3], [1, 2, 3]], ids=str)
def test_a_host_with_another_folder_is_named_on_all_hosts(apart: list[int], tmp_path: Path) -> None:
    def place(host: int) -> Path:
        return tmp_path / (f"of {host}" if host in apart else "shared") / "checkpoints"

    refusals = each(4, lambda hosts: require_shared(hosts, place(hosts.index), "run.directory"))
    assert len(set(refusals)) == 1
    assert refusals[0].startswith(
        f"the folder of run.directory is not the same on all hosts: host 0 has it at {place(0)}, but host "
    )
    for host in [1, 2, 3] if apart == [0] else apart:
        assert f"host {host} at {place(host)}" in refusals[0]
    assert not list(tmp_path.rglob(".weir*"))


def test_a_host_that_sees_the_others_and_is_not_seen_is_refused(tmp_path: Path) -> None:
    """As with an overlay file system: what is below shows, what is written stays above."""

    def program(hosts: Hosts) -> None:
        if hosts.is_leader:
            require_shared(hosts, tmp_path, "run.directory")
            return
        real = shared_folders._write
        own = tmp_path / "above"

        def above(path: Path) -> str:
            return real(own / path.name) if path.name.startswith(".weir-host-1-") else real(path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shared_folders, "_write", above)
            require_shared(hosts, tmp_path, "run.directory")

    refusals = each(2, program)
    assert refusals[0] == refusals[1] != ""


def test_a_host_that_can_not_write_is_named_on_all_hosts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    places = [tmp_path / "run", tmp_path / "run", tmp_path / "file" / "run"]
    refusals = each(3, lambda hosts: require_shared(hosts, places[hosts.index], "run.directory"))
    assert len(set(refusals)) == 1
    assert f"host 2 of 3 can't write in {places[2]} (run.directory): " in refusals[0]


def test_a_run_with_a_checkpoint_folder_for_each_host_is_refused_before_the_queue_is_touched(tmp_path: Path) -> None:
    """Two real processes, as two learners started in different working directories are."""
    from serving_bridge.queue.queue import TrajectoryQueue

    fill(tmp_path, 4)
    settings = {"steps": 1, "groups_per_step": 4, "sequence_length": 8, "microbatch_rows": 4, "peak_tflops": 1}
    processes = Processes(
        tmp_path, 2, settings=settings | {"mesh": {"data": 1, "fsdp": 2}}, num_devices=2, own_checkpoints=True
    )
    assert processes.wait(120) == [1, 1]
    folders = [tmp_path / f"checkpoints-{host}" for host in (0, 1)]
    for host in (0, 1):
        assert (
            f"the folder of run.directory is not the same on all hosts: host 0 has it at {folders[0]}, but "
            f"host 1 at {folders[1]} sees another folder"
        ) in processes.output(host)
    queue = TrajectoryQueue(tmp_path / "state.db")
    assert (
        queue.admin.progress().num_ready,
        queue.admin.progress().num_leased,
        queue.admin.progress().num_acknowledged,
    ) == (4, 0, 0)
    assert queue.database.read(
        lambda session: session.execute("SELECT value FROM progress WHERE key = 'consumer_epoch'")
    ) == [(0,)]
    queue.close()
