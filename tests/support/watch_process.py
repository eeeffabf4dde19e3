"""A host that only watches the others, without JAX, for tests: python -m tests.support.watch_process JSON.

It prints "asks" once its request to join is on the way to host 0, and "joined" with the addresses it listens at when it
has joined. Then it hangs, fails or leaves.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from learner_jax.hosts import roll_call
from learner_jax.hosts import watch as watch_module
from learner_jax.hosts.watch import Watch
from learner_jax.hosts.wire import Connection, Hello, HostError, Welcome

_LONG_S = 600


async def _asks(connection: Connection, hello: Hello, timeout_s: float) -> Welcome:
    asking = asyncio.create_task(roll_call.answered(connection, hello, timeout_s))
    await asyncio.sleep(0)  # it runs until it waits for host 0's answer
    print("asks", flush=True)
    return await asking


def main() -> None:
    told = json.loads(sys.argv[1])
    watch_module.answered = _asks
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
