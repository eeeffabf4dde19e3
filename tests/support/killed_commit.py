"""Saves steps 1 to 3, of which 2 is not hashed and 3 is half written: python -m tests.support.killed_commit FOLDER

It says "committed" after step 2 and "writing" in the middle of step 3, where it waits to be killed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from learner_jax.checkpoints import checkpoints as checkpoint
from learner_jax.checkpoints import hashes as checkpoint_files
from learner_jax.checkpoints import proof as checkpoint_proof
from tests.support.checkpoint_states import make_state, position, save


def main() -> None:
    directory, real_dumps = Path(sys.argv[1]), json.dumps
    save(directory, 1)

    def slow_hashes(*args: Any, should_stop: Any, **kwargs: Any) -> Any:
        while not should_stop():
            time.sleep(0.01)
        raise checkpoint_files.Stopped

    def slow_dumps(value: Any, *args: Any, **kwargs: Any) -> str:
        if isinstance(value, dict) and value.get("position", {}).get("completed_steps") == 3:
            print("writing", flush=True)
            time.sleep(60)
        return real_dumps(value, *args, **kwargs)

    checkpoint.HASHES_WITHIN_S = 0.0
    checkpoint_proof.hash_files, json.dumps = slow_hashes, slow_dumps
    checkpoints = checkpoint.Checkpoints(directory, keep=9)
    for step in (2, 3):
        checkpoints.save(make_state(step), position(step))
        if step == 2:
            checkpoints.wait()
            print("committed", flush=True)
    checkpoints.wait()


if __name__ == "__main__":
    main()
