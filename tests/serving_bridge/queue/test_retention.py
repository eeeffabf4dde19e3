"""Rows of prompts that ended are deleted, and the watermark refuses their groups from then on."""

from __future__ import annotations

from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.queue.staleness import Pace
from tests.support.queue_engines import PACE, Clock, Place, clock, execute, lease, place, put, queue, train

__all__ = ["clock", "place", "queue"]  # fixtures


def _run_through(queue: TrajectoryQueue, steps: range) -> None:
    for step in steps:
        claimed = queue.producer.claim_prompts("w", 10, Pace(0, 4, 1000), served_step=step)
        assert len(claimed) == 4
        put(queue, *claimed[:3])
        queue.producer.release_claim(claimed[3])
        trained = lease(queue, 2, version=1)
        train(queue, trained, step + 1)
        queue.consumer.acknowledge(trained)
        queue.consumer.lease_groups(1, trained_version=99, max_staleness=1)  # drops the third


def test_rows_of_ended_prompts_go_and_the_watermark_stands_for_them(queue: TrajectoryQueue, place: Place) -> None:
    _run_through(queue, range(20))
    assert execute(queue, "SELECT count(*) FROM groups")[0][0] <= 2
    progress = queue.admin.progress()
    assert (progress.num_acknowledged, progress.num_dropped) == (40, 20)
    assert queue.admin.overview().watermark >= 76
    worker = place.open()  # one that was thought dead
    assert put(worker, *range(76)) == 0
    restarted = place.open()
    restarted.consumer.recover(
        [f"run/{i}" for i in (0, 1, 72, 73)], completed_steps=18, prompt_cursor=60
    )  # an older checkpoint
    assert put(worker, 0, 1, 40, 72) == 0
    assert lease(restarted) == []
    progress = restarted.admin.progress()
    assert (progress.num_acknowledged, progress.num_dropped) == (40, 20)
    restarted.consumer.acknowledge([])
    progress = restarted.admin.progress()
    assert (progress.num_acknowledged, progress.num_dropped) == (40, 20)


def test_the_watermark_waits_for_claims_and_groups_on_their_way(queue: TrajectoryQueue, clock: Clock) -> None:
    assert queue.producer.claim_prompts("slow", 1, PACE, served_step=0) == [0]
    assert queue.producer.claim_prompts("w", 9, PACE, served_step=0) == [1, 2, 3]
    put(queue, 1, 2, 3)
    trained = lease(queue, 2)
    train(queue, trained)
    queue.consumer.acknowledge(trained)
    assert queue.admin.overview().watermark == 0
    assert put(queue, 1, 2) == 0
    assert put(queue, 0) == 1
    queue.consumer.acknowledge([])
    assert queue.admin.overview().watermark == 0
    train(queue, lease(queue, 2), 2)
    queue.consumer.acknowledge(["run/0"])
    assert queue.admin.overview().watermark == 3  # trained on, and not yet in a checkpoint
    queue.consumer.acknowledge(["run/3"])
    assert queue.admin.overview().watermark == 4
