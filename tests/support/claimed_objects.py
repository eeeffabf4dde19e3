"""Several that want to make one object, on any store: only one does."""

from __future__ import annotations

import threading

from serving_bridge.storage import ObjectStore


def assert_only_one_of_many_makes(objects: ObjectStore) -> None:
    made: list[int] = []

    def make(number: int) -> None:
        if objects.put_new("claim", f"{number}".encode()):
            made.append(number)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = made
    assert objects.get("claim", max_bytes=9) == f"{winner}".encode()


def assert_a_second_one_is_refused(objects: ObjectStore) -> None:
    assert objects.put_new("claim", b"mine")
    assert not objects.put_new("claim", b"other")
    assert objects.get("claim", max_bytes=9) == b"mine"
