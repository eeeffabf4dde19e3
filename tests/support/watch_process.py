"""A host that only watches the others, without JAX, for tests: python -m tests.support.watch_process JSON.

It joins, prints "joined" and the addresses it listens at, and then hangs, fails or leaves.
"""

from __future__ import annotations

import json
import sys
import time

from learner_jax.hosts.watch import Watch
from learner_jax.hosts.wire import HostError

_LONG_S = 600


def main() -> None:
    told = json.loads(sys.argv[1])
    watch = Watch(told["index"], told["count"], heartbeat_s=told["heartbeat_s"])
    watch.log_ends(lambda event, **fields: print(json.dumps({"event": event} | fields), flush=True))
    try:
        joined = watch.join(
            told["coordinator"], told.get("facts", {}), timeout_s=told["timeout_s"], secret=told.get("secret", "")
        )
    except HostError as error:
        print(f"refused: {error}", flush=True)
        raise SystemExit(1) from None
    watch.forget_sockets()
    print(f"joined {joined.address}", flush=True)
    match told["then"]:
        case "hang":
            time.sleep(_LONG_S)
        case "settle":
            watch.settle()
            print("all alive", flush=True)
            time.sleep(_LONG_S)
        case "fail":
            watch.fail("RuntimeError: no disk\x1b[31m")
            time.sleep(_LONG_S)
        case "leave":
            watch.leave()


if __name__ == "__main__":
    main()
