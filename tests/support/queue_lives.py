"""Lives of a process that works and learns at once, each killed at a named point, and what the queue holds afterwards.

Run as `python -m tests.support.queue_lives FOLDER POINT=URL...`, a fresh queue for each point; prints a JSON list.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving_bridge.database.database import Database, Session, open_database
from serving_bridge.queue.blobs import BlobFolder
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.queue.staleness import Pace
from tests.support.trajectories import make_group

STEPS, GROUPS = 3, 2
PACE = Pace(max_staleness=1, groups_per_step=GROUPS, total_steps=STEPS)
OPERATIONS = ("recover", "claim", "put", "lease", "train", "acknowledge")
#: "before" and "after" are the commit of an operation.
POINTS = (
    *(f"{when} {operation}" for operation in OPERATIONS for when in ("before", "after")),
    "with the file and without the row",
    "between training and checkpoint",
    "between checkpoint and acknowledgement",
    "after the row's end and before the file's",
)


class Reaper:
    """Kills its process at the second time that a point is passed; of recovery, the first."""

    def __init__(self, point: str | None):
        self.point, self.passed = point, 0

    def at(self, point: str) -> None:
        if point == self.point:
            self.passed += 1
            if self.passed == (1 if "recover" in point else 2):
                os.kill(os.getpid(), signal.SIGKILL)


class MortalDatabase:
    """A database that tells the reaper of its commits; `operation` is what goes on."""

    def __init__(self, inner: Database, reaper: Reaper):
        self.inner, self.reaper, self.name, self.operation = inner, reaper, inner.name, ""

    def write(self, work: Callable[[Session], Any], *, synced: bool = True) -> Any:
        def mortal(session: Session) -> Any:
            result = work(session)
            self.reaper.at(f"before {self.operation}")
            return result

        if self.operation == "put":
            self.reaper.at("with the file and without the row")
        result = self.inner.write(mortal, synced=synced)
        self.reaper.at(f"after {self.operation}")
        return result

    def read(self, work: Callable[[Session], Any]) -> Any:
        return self.inner.read(work)

    def close(self) -> None:
        self.inner.close()


def life(url: str, folder: Path, point: str | None) -> None:
    """Goes on from where an earlier life ended until everything is trained on."""
    reaper = Reaper(point)
    database = MortalDatabase(open_database(url), reaper)
    queue = TrajectoryQueue(database=database, blobs=folder / "blobs", blob_bytes=2000)
    release = queue.blobs.release if queue.blobs else None

    def release_late(names: Any) -> None:
        if names:
            reaper.at("after the row's end and before the file's")
        assert release is not None
        release(names)

    queue.blobs.release = release_late  # type: ignore[method-assign, union-attr]
    checkpoint, accepted = folder / "checkpoint.json", folder / "accepted"
    ledger: list[str] = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
    database.operation = "recover"
    cursor = json.loads((folder / "cursor").read_text()) if checkpoint.exists() else 0
    queue.consumer.recover(ledger[-GROUPS:], completed_steps=len(ledger) // GROUPS, prompt_cursor=cursor)
    database.operation = "resume"
    waiting = queue.producer.resume_claims("w")
    while len(ledger) < STEPS * GROUPS:
        database.operation = "claim"
        waiting += queue.producer.claim_prompts("w", 3, PACE, served_step=STEPS)
        for index in waiting:
            database.operation = "put"
            queue.producer.put([(index, make_group(f"run/{index}", answer_tokens=2 if index % 2 else 200))])
            with accepted.open("a") as file:
                print(f"run/{index}", file=file)
        waiting = []
        database.operation = "lease"
        batch: list[str] = []
        while len(batch) < GROUPS:
            report = queue.consumer.lease_groups(GROUPS - len(batch), trained_version=1, max_staleness=1)
            batch += [group[0].group_id for group in report.groups]
        database.operation = "train"
        step = len(ledger) // GROUPS + 1
        queue.consumer.mark_trained(batch, completed_steps=step, trained_version=step)
        reaper.at("between training and checkpoint")
        ledger = [*ledger, *batch]
        (folder / "cursor").write_text(str(queue.consumer.prompt_cursor()))
        partial = folder / "partial"
        partial.write_text(json.dumps(ledger))
        partial.replace(checkpoint)
        reaper.at("between checkpoint and acknowledgement")
        database.operation = "acknowledge"
        queue.consumer.acknowledge(batch)
    queue.close()


def in_a_process(run: Callable[[], None]) -> int:
    """Exit status of a forked process; minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
            os._exit(0)
        except BaseException:  # noqa: BLE001  a fork must not go on in its parent's code
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(url: str, folder: Path, point: str) -> dict[str, Any]:
    """What came of a life that was killed at a point, and of the next one."""
    folder.mkdir()
    first = in_a_process(lambda: life(url, folder, point))
    second = in_a_process(lambda: life(url, folder, None))
    queue = TrajectoryQueue(url)
    progress = queue.admin.progress()
    queue.close()
    return {
        "point": point,
        "exits": [first, second],
        "ledger": json.loads((folder / "checkpoint.json").read_text()),
        "accepted": (folder / "accepted").read_text().split(),
        "acknowledged": progress.num_acknowledged,
        "left": progress.num_ready + progress.num_leased + progress.num_trained + progress.num_claimed,
        "dead": progress.num_dead,
        "files": len(list(BlobFolder(folder / "blobs").files())),
    }


def main() -> None:
    folder, places = Path(sys.argv[1]), [place.split("=", 1) for place in sys.argv[2:]]
    print(json.dumps([outcome(url, folder / str(i), point) for i, (point, url) in enumerate(places)]))


if __name__ == "__main__":
    main()
