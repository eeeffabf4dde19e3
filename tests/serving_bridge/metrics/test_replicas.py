"""vLLM's own metrics come through with the replica's name, each family once, whoever of them is silent."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving_bridge.metrics import Replica, ReplicaPages

PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="policy"} 3.0
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="policy"} 70.0
# HELP vllm:ttft_seconds Histogram of time to first token.
# TYPE vllm:ttft_seconds histogram
vllm:ttft_seconds_bucket{le="0.5"} 1.0
vllm:ttft_seconds_bucket{le="+Inf"} 2.0
vllm:ttft_seconds_count 2.0
vllm:ttft_seconds_sum 0.75
"""


@contextmanager
def server(content: str, token: str) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers["Authorization"] == f"Bearer {token}" and self.path == "/metrics"
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_address[1]}"
    finally:
        served.shutdown()
        served.server_close()
        thread.join()


def samples(page: bytes) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_series_carry_the_replica_and_keep_their_own_labels() -> None:
    with server(PAGE, "t0") as first, server(PAGE.replace("3.0", "5.0"), "t1") as second:
        pages = ReplicaPages(lambda: [Replica("vm-0", first, "t0", 7), Replica("vm-1", second, "t1", 8)])
        page = pages.page()
    found = samples(page)
    running = ("vllm:num_requests_running", "engine=0", "model_name=policy")
    assert found[(*running, "replica=vm-0")] == 3.0
    assert found[(*running, "replica=vm-1")] == 5.0
    assert found["vllm:ttft_seconds_sum", "replica=vm-0"] == 0.75
    assert found["vllm:ttft_seconds_bucket", "le=+Inf", "replica=vm-1"] == 2.0
    assert len(found) == 2 * len(samples(PAGE.encode()))
    assert page.decode().count("# TYPE vllm:ttft_seconds histogram") == 1
    assert "version" not in page.decode()


def test_the_version_is_a_label_where_that_is_asked_for() -> None:
    with server("x 1\n", "t") as url:
        page = ReplicaPages(lambda: [Replica("vm-0", url, "t", 7)], version_label=True).page()
    assert page == b'x{replica="vm-0",version="7"} 1\n'


@pytest.mark.parametrize("odd", ["silent", "closed", "name"])
def test_one_that_gives_no_answer_is_counted_and_the_others_are_shown(odd: str) -> None:
    failed: list[str] = []
    with server("x 1\n", "t") as url:
        other = {
            "silent": Replica("vm-1", url, "wrong", 1),
            "closed": Replica("vm-1", "http://127.0.0.1:1", "t", 1),
            "name": Replica('vm"1', url, "t", 1),
        }[odd]
        page = ReplicaPages(lambda: [Replica("vm-0", url, "t", 1), other], failed=failed.append).page()
    assert page == b'x{replica="vm-0"} 1\n'
    assert failed == ([] if odd == "name" else ["vm-1"])


def test_a_fleet_without_replicas_has_an_empty_page() -> None:
    assert ReplicaPages(list).page() == b""


def test_however_often_it_is_scraped_vllm_is_asked_every_few_seconds() -> None:
    now, asked = [100.0], list[float]()
    with server("x 1\n", "t") as url:

        def replicas() -> list[Replica]:
            asked.append(now[0])
            return [Replica("vm-0", url, "t", 1)]

        pages = ReplicaPages(replicas, clock=lambda: now[0])
        for now[0] in (100.0, 101.0, 104.9, 105.0, 109.0, 111.0):
            assert pages.page() == b'x{replica="vm-0"} 1\n'
    assert asked == [100.0, 105.0, 111.0]


def test_a_look_that_fails_is_not_kept() -> None:
    tries: list[int] = []

    def replicas() -> list[Replica]:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("the list is away")
        return []

    pages = ReplicaPages(replicas, clock=lambda: 0.0)
    with pytest.raises(OSError, match="the list is away"):
        pages.page()
    assert pages.page() == b""
