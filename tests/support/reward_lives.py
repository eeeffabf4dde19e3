"""Lives of a process that puts groups, brings their rewards and trains, each killed at a named point.

Run as `python -m tests.support.reward_lives FOLDER POINT=URL...`, a fresh queue for each point; prints a JSON list.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from serving_bridge.database.database import open_database
from serving_bridge.delayed_rewards import Arrival
from serving_bridge.queue import Delay, TrajectoryQueue
from tests.support.queue_lives import MortalDatabase, Reaper, in_a_process
from tests.support.trajectories import make_group, pending

GROUPS, SIZE = 4, 2
#: Of the last group one reward never comes.
MISSING = f"run/{GROUPS - 1}/1"
POINTS = tuple(f"{when} {what}" for what in ("put", "bring", "settle") for when in ("before", "after"))


def expected() -> dict[str, list[float]]:
    """Rewards of each group: the first that were sent, and the score of those without one."""
    return {
        f"run/{index}": [-1.0 if f"run/{index}/{sample}" == MISSING else index + sample for sample in range(SIZE)]
        for index in range(GROUPS)
    }


def life(url: str, folder: Path, point: str | None) -> None:
    """Does everything from the start, as a sender that does not know what arrived; trains on what is released."""
    database = MortalDatabase(open_database(url), Reaper(point))
    queue = TrajectoryQueue(database=database, clock=lambda: 1000.0)
    for index in range(GROUPS):
        database.operation = "put"
        queue.producer.put([(index, pending(make_group(f"run/{index}", size=SIZE)))], delays={index: Delay(60.0, -1.0)})
    for value in (0.0, 100.0):  # the second of each comes too late to count
        for index in reversed(range(GROUPS)):
            for sample in range(SIZE):
                if (subject := f"run/{index}/{sample}") != MISSING:
                    database.operation = "bring"
                    queue.rewards.bring([Arrival(subject, f"{value:g}", index + sample + value)])
    queue.close()
    later = MortalDatabase(open_database(url), database.reaper)
    queue = TrajectoryQueue(database=later, clock=lambda: 2000.0)
    later.operation = "settle"
    later.reaper.passed = 1  # there is one settling
    queue.rewards.settle()
    with (folder / "trained").open("a") as file:
        for group in queue.consumer.lease_groups(99, trained_version=1, max_staleness=5).groups:
            print(json.dumps([group[0].group_id, [trajectory.total_reward for trajectory in group]]), file=file)
    queue.close()


def outcome(url: str, folder: Path, point: str) -> dict[str, Any]:
    """What came of a life that was killed at a point, and of the next one."""
    folder.mkdir()
    exits = [in_a_process(lambda: life(url, folder, point)), in_a_process(lambda: life(url, folder, None))]
    queue = TrajectoryQueue(url)
    overview = queue.rewards.overview()
    queue.close()
    return {
        "point": point,
        "exits": exits,
        "trained": [json.loads(line) for line in (folder / "trained").read_text().splitlines()],
        "joined": overview.counts["joined"],
        "waiting": overview.num_waiting,
    }


def main() -> None:
    folder, places = Path(sys.argv[1]), [place.split("=", 1) for place in sys.argv[2:]]
    print(json.dumps([outcome(url, folder / str(i), point) for i, (point, url) in enumerate(places)]))


if __name__ == "__main__":
    main()
