"""What a replica lets in: nothing without a token, and with one only the routes and arguments of our own clients."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import msgspec
import pytest

from serving_bridge.access.gate import (
    ALSO_OPEN,
    BASE_URL,
    INFERENCE_TOKEN,
    Gate,
    GateError,
    Refused,
    without_request_id,
)
from serving_bridge.access.probes import CONTROL_TOKEN, batch_of, probe_ids

URL = "http://127.0.0.1:8000"
CONTROL, INFERENCE = "c" * 64, "i" * 64
GATE = Gate(URL, CONTROL, INFERENCE)
HASH = "0" * 64
JSON = "application/json"


def ask(
    method: str, target: str, body: Any = None, *, token: str | None = CONTROL, headers: dict[str, str] | None = None
) -> int:
    """Status of the gate's refusal, 0 if the request may pass."""
    payload = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
    found = {"host": "127.0.0.1:8000", "content-length": str(len(payload))}
    if payload:
        found["content-type"] = JSON
    if token is not None:
        found["authorization"] = f"Bearer {token}"
    path, _, query = target.partition("?")
    pairs = [(name.encode(), value.encode()) for name, value in (found | (headers or {})).items()]
    try:
        GATE.check_body(GATE.enter(method, path.encode(), query.encode(), pairs), payload)
    except Refused as refused:
        return int(msgspec.json.decode(refused.payload())["error"]["code"])
    return 0


def call(method: str, **kwargs: Any) -> dict[str, Any]:
    return {"method": method, "kwargs": kwargs}


STAGE = call("weir_stage", version=1, content_sha256=HASH, round_id="r", lease_s=60.0)
GENERATE = {"token_ids": [5], "sampling_params": {"max_tokens": 4}}
PROMPTS = {"prompts": [[5], [6, 7]], "sampling_params": {"max_tokens": 4}, "packed": True}


SWAP = {"version": 1, "content_sha256": HASH, "round_id": "r", "applies": True, "golden": [[5, 6]]}
SWAPS: list[dict[str, Any]] = [{"version": "1"}, {"content_sha256": "0"}, {"round_id": ""}, {"applies": 1}, {"more": 1}]
SWAPS += [{"golden": []}, {"golden": [[5], 6]}]
CONTROL_REQUESTS: list[tuple[str, str, Any]] = [
    ("GET", "/is_paused", None),
    ("GET", "/weight_info", None),
    ("POST", "/weir_round", None),
    ("POST", "/pause?mode=keep&clear_cache=true", None),
    ("POST", "/resume", None),
    ("POST", "/start_weight_update", None),
    ("POST", "/update_weights", {"update_info": {}}),
    ("POST", "/update_weight_version", {"new_version": "7"}),
    ("POST", "/weir_swap", SWAP),
    ("POST", "/weir_serve", {"version": 7}),
    ("POST", "/abort_requests", {}),
    ("POST", "/collective_rpc", STAGE),
    ("POST", "/collective_rpc", call("weir_status", round_id="")),
    ("POST", "/collective_rpc", call("weir_release", round_id="r")),
]


@pytest.mark.parametrize(("method", "target", "body"), CONTROL_REQUESTS)
def test_control_routes_need_the_control_token(method: str, target: str, body: Any):
    assert ask(method, target, body) == 0
    assert ask(method, target, body, token=INFERENCE) == 403
    assert ask(method, target, body, token=None) == 401
    assert ask(method, target, body, token="x" * 64) == 401


def test_sampling_and_metrics_need_either_token_and_health_none():
    for token in (CONTROL, INFERENCE):
        assert ask("POST", "/inference/v1/generate", GENERATE, token=token) == 0
        assert ask("POST", "/inference/v1/generate", PROMPTS, token=token) == 0
        assert ask("GET", "/metrics", token=token) == 0
    assert ask("GET", "/metrics", token=None) == 401
    assert ask("POST", "/inference/v1/generate", GENERATE, token=None) == 401
    assert ask("GET", "/health", token=None) == 0


@pytest.mark.parametrize(
    "target",
    [
        "/%63ollective_rpc",
        "/%2563ollective_rpc",
        "//collective_rpc",
        "/collective_rpc/",
        "/x/../collective_rpc",
        "/./collective_rpc",
        "/Collective_rpc",
        "/COLLECTIVE_RPC",
        "/collective_rpc%00",
        "/collective_rpc;x",
        "/collective_rpc%2f",
        "http://127.0.0.1:8000/collective_rpc",
        "/metrics/collective_rpc",
        "/server_info",
        "/openapi.json",
        "/sleep",
        "/v1/completions",
        "/inference/v1/generate/",
        "/healthz",
        "/health%",
        "",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_another_spelling_of_a_path_is_another_path(method: str, target: str):
    assert ask(method, target, STAGE) == 404
    assert ask(method, target, STAGE, token=None) == 401


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "post", "TRACE", "CONNECT"])
def test_another_method_is_another_route(method: str):
    assert ask(method, "/collective_rpc", STAGE) == 404
    assert ask(method, "/health", token=None) == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost:8000"},
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:8001"},
        {"host": "evil.example"},
        {"host": "127.0.0.1:8000.evil.example"},
        {"host": ""},
    ],
)
def test_another_host_is_not_answered_so_that_no_name_can_be_rebound(headers: dict[str, str]):
    assert ask("GET", "/health", token=None, headers=headers) == 421
    assert ask("POST", "/resume", headers=headers) == 421


def test_missing_and_doubled_headers_are_refused():
    host, token = (b"host", b"127.0.0.1:8000"), (b"authorization", f"Bearer {CONTROL}".encode())
    for headers, status in (([token], 421), ([host, host, token], 421), ([host, token, token], 401), ([host], 401)):
        with pytest.raises(Refused) as caught:
            GATE.enter("POST", b"/resume", b"", headers)
        assert caught.value.status == status


@pytest.mark.parametrize(
    "value", ["", "Bearer", f"Basic {CONTROL}", f"Bearer  {CONTROL}", f"Bearer {CONTROL} ", "\u00ff"]
)
def test_only_the_exact_token_opens(value: str):
    assert ask("POST", "/resume", token=None, headers={"authorization": value}) == 401
    assert ask("POST", "/resume", token=CONTROL[:-1]) == 401


def test_web_pages_are_refused_whatever_they_know():
    for origin in ("http://evil.example", "null", URL):
        assert ask("POST", "/resume", headers={"origin": origin}) == 403
        assert ask("GET", "/health", token=None, headers={"origin": origin}) == 403


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "", "application/json-seq", "application/x-www-form-urlencoded", "multipart/form-data", "a, b"],
)
def test_only_json_is_read(kind: str):
    assert ask("POST", "/collective_rpc", STAGE, headers={"content-type": kind}) == 415


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-length": "99999999"}, 413),
        ({"content-length": "9" * 5000}, 413),
        ({"content-length": "-1"}, 411),
        ({"content-length": "\u00b2"}, 411),
        ({"transfer-encoding": "chunked"}, 400),
        ({"content-encoding": "gzip"}, 400),
        ({"upgrade": "websocket"}, 400),
    ],
)
def test_bodies_are_plain_and_of_bounded_length(headers: dict[str, str], status: int):
    assert ask("POST", "/collective_rpc", STAGE, headers=headers) == status
    assert ask("POST", "/resume", b"x") == 400
    assert ask("GET", "/metrics", b"x") == 400


def test_a_request_without_a_body_says_so_or_nothing():
    head = [(b"host", b"127.0.0.1:8000"), (b"authorization", f"Bearer {CONTROL}".encode())]
    length = b"content-length"
    for more in ([], [(length, b"0")]):
        assert GATE.enter("POST", b"/resume", b"", [*head, *more]).caller == "control"
    for more in ([(length, b"0"), (length, b"5")], [(length, b"5")], [(length, b"00")]):
        with pytest.raises(Refused, match="expected no body"):
            GATE.enter("POST", b"/resume", b"", [*head, *more])


def test_a_body_is_as_long_as_its_route_takes():
    for length, status in ((64 << 10, 0), ((64 << 10) + 1, 413)):
        body = msgspec.json.encode(STAGE)
        assert ask("POST", "/collective_rpc", body + b" " * (length - len(body))) == status
        entry = GATE.enter("POST", b"/collective_rpc", b"", _head("5"))
        with pytest.raises(Refused) if status else nullcontext():
            GATE.check_body(entry, body + b" " * (length - len(body)))
    for digits, status in (("000000000005", 0), ("0000000000005", 413)):
        with pytest.raises(Refused) if status else nullcontext():
            GATE.enter("POST", b"/collective_rpc", b"", _head(digits))


def _head(length: str, kind: str = JSON) -> list[tuple[bytes, bytes]]:
    found = {"host": "127.0.0.1:8000", "authorization": f"bearer {CONTROL}", "content-type": kind}
    return [(name.encode(), value.encode()) for name, value in (found | {"content-length": length}).items()]


def test_json_may_say_its_encoding():
    for kind in ("Application/JSON", "application/json; charset=UTF-8"):
        assert GATE.enter("POST", b"/collective_rpc", b"", _head("5", kind)).caller == "control"
    with pytest.raises(Refused, match="Content-Type"):
        GATE.enter("POST", b"/collective_rpc", b"", [*_head("5"), (b"content-type", JSON.encode())])


def test_a_gate_has_two_tokens_and_an_address():
    Gate(URL, "c" * 32, "i" * 32)
    for control, inference, url, said in (
        ("c" * 31, "i" * 32, URL, "WEIR_CONTROL_TOKEN has 31 characters"),
        ("c" * 32, "i" * 31, URL, "WEIR_INFERENCE_TOKEN has 31 characters"),
        ("c" * 32, "c" * 32, URL, "are the same"),
        ("c" * 32, "i" * 32, "host", "expected http://HOST:PORT"),
    ):
        with pytest.raises(GateError, match=said):
            Gate(url, control, inference)
    at_80, at_81 = (Gate(f"http://Own:{port}", "c" * 32, "i" * 32) for port in (80, 81))
    for host in (b"own", b"own:80", b"OWN"):
        assert at_80.enter("GET", b"/health", b"", [(b"host", host)]).caller is None
    with pytest.raises(Refused, match="not this server's address"):
        at_81.enter("GET", b"/health", b"", [(b"host", b"own")])


def test_a_gate_is_made_of_a_servers_environment():
    environment = {CONTROL_TOKEN: "c" * 32, INFERENCE_TOKEN: "i" * 32, BASE_URL: URL, ALSO_OPEN: "/more /other"}
    gate = Gate.of_environment(environment)
    headers = [*_head("2")[:1], (b"authorization", b"Bearer " + b"i" * 32), *_head("2")[2:]]
    for path in (b"/more", b"/other"):
        entry = gate.enter("POST", path, b"", headers)
        gate.check_body(entry, b"{}")
        with pytest.raises(Refused):
            gate.check_body(entry, b"[]")
    for name in (CONTROL_TOKEN, INFERENCE_TOKEN, BASE_URL):
        with pytest.raises(GateError, match=f"^{name} not set"):
            Gate.of_environment(environment | {name: ""})


def test_an_id_in_a_header_does_not_reach_the_server():
    kept = [(b"host", b"x"), (b"x-other", b"1")]
    assert without_request_id([kept[0], (b"x-request-id", b"weir-probe-1"), kept[1]]) == kept


@pytest.mark.parametrize(
    ("method", "status"),
    [
        ("reload_weights", 403),
        ("save_sharded_state", 403),
        ("load_model", 403),
        ("add_lora", 403),
        ("__init__", 403),
        ("weir_stage ", 403),
        ("WEIR_STAGE", 403),
        ("update_environment_variables", 403),
        (["weir_stage"], 400),
        (None, 400),
    ],
)
def test_only_our_own_methods_are_called_on_workers(method: Any, status: int):
    assert ask("POST", "/collective_rpc", STAGE | {"method": method}) == status


@pytest.mark.parametrize(
    "changes",
    [
        {"root": "/etc"},
        {"version": -1},
        {"version": 2**31},
        {"version": 10**400},
        {"version": "1"},
        {"version": True},
        {"version": 1.5},
        {"content_sha256": "../../etc/passwd"},
        {"content_sha256": HASH + "\n"},
        {"round_id": ""},
        {"round_id": "r" * 300},
        {"round_id": 5},
        {"lease_s": 0},
        {"lease_s": -1.0},
        {"lease_s": 1e9},
        {"lease_s": "NaN"},
    ],
)
def test_arguments_of_staging_are_checked(changes: dict[str, Any]):
    assert ask("POST", "/collective_rpc", STAGE | {"kwargs": STAGE["kwargs"] | changes}) == 400


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/collective_rpc", STAGE | {"args": ["/etc"]}),
        ("/collective_rpc", STAGE | {"timeout": 1e9}),
        ("/collective_rpc", {"method": "weir_status"}),
        ("/collective_rpc", b'{"method":"weir_status","kwargs":{"round_id":NaN}}'),
        ("/collective_rpc", b"[]"),
        ("/collective_rpc", b"{"),
        ("/collective_rpc", b"\xff\xfe{}"),
        ("/collective_rpc", b"[" * 50_000),
        ("/update_weights", {"update_info": {"version": 1}}),
        ("/update_weights", {"update_info": {}, "more": 1}),
        ("/update_weights", {"update_info": None}),
        ("/update_weights", {"update_info": {"version": 1, "content_sha256": HASH, "round_id": "r"}}),
        *(("/update_weight_version", {"new_version": name}) for name in ("unproven", "default", "07", 7, "7\n")),
        *(("/weir_swap", SWAP | change) for change in SWAPS),
        ("/weir_serve", {"version": -1}),
        ("/weir_serve", {"version": "unproven"}),
        ("/weir_serve", {}),
        ("/abort_requests", {"request_ids": ["generate-tokens-x"]}),
        ("/inference/v1/generate", {"sampling_params": {"max_tokens": 1}, "packed": True}),
        ("/inference/v1/generate", GENERATE | {"prompts": [[5]], "packed": True}),
        ("/inference/v1/generate", PROMPTS | {"prompts": []}),
        ("/inference/v1/generate", PROMPTS | {"prompts": [[5], "5"]}),
        ("/inference/v1/generate", PROMPTS | {"prompts": [[5]] * 1025}),
        ("/inference/v1/generate", PROMPTS | {"packed": False}),
        ("/inference/v1/generate", PROMPTS | {"request_id": "r"}),
        ("/inference/v1/generate", GENERATE | {"kv_transfer_params": {}}),
        ("/inference/v1/generate", GENERATE | {"content_parts": [{"type": "image_url", "url": "http://x"}]}),
        ("/inference/v1/generate", GENERATE | {"request_id": "a b"}),
        ("/inference/v1/generate", GENERATE | {"request_id": "a\n"}),
        ("/inference/v1/generate", GENERATE | {"priority": -(2**63)}),
        ("/inference/v1/generate", GENERATE | {"sampling_params": {"max_tokens": "many"}}),
        ("/inference/v1/generate", GENERATE | {"sampling_params": {"max_tokens": 1, "extra_args": {}}}),
        ("/inference/v1/generate", GENERATE | {"sampling_params": {"max_tokens": 1, "prompt_logprobs": -1}}),
        ("/inference/v1/generate", {"token_ids": "5", "sampling_params": {"max_tokens": 1}}),
    ],
)
def test_bodies_hold_what_our_clients_send_and_no_more(target: str, body: Any):
    assert ask("POST", target, body) == 400


@pytest.mark.parametrize(
    "query", ["", "?mode=abort", "?mode=keep", "?mode=keep&clear_cache=false", "?clear_cache=true&mode=keep"]
)
def test_a_pause_always_keeps_answers_and_clears_the_caches(query: str):
    assert ask("POST", f"/pause{query}") == 403
    assert ask("POST", "/resume?x=1") == 403


def test_who_only_samples_makes_no_probes_and_takes_no_place_ahead():
    (probe,) = probe_ids(1, CONTROL)
    for changes in ({"request_id": probe}, {"request_id": "weir-probe-dead-1-0"}, {"priority": -1}):
        assert ask("POST", "/inference/v1/generate", GENERATE | changes, token=INFERENCE) == 403
        assert ask("POST", "/inference/v1/generate", GENERATE | changes, token=CONTROL) == 0


def test_a_probe_is_known_by_the_seal_of_its_start():
    first, second = probe_ids(2, CONTROL)
    assert batch_of(f"generate-tokens-{first}-0-abc", CONTROL) == batch_of(f"generate-tokens-{second}", CONTROL)
    assert batch_of(f"generate-tokens-{first}", CONTROL)[1] == 2  # type: ignore[index]
    for forged in (
        "generate-tokens-weir-probe-dead-1-0",
        "generate-tokens-weir-probe-dead-1-0-",
        f"generate-tokens-{first[:-1]}0" if first[-1] != "0" else f"generate-tokens-{first[:-1]}1",
        f"generate-tokens-{first.replace('-2-', '-1-')}",
        f"cmpl-{first}",
        first,
    ):
        assert batch_of(forged, CONTROL) is None, forged
    assert batch_of(f"generate-tokens-{first}", INFERENCE) is None


@pytest.mark.parametrize(
    ("values", "token"),
    [((), None), ((b"1",), 1), ((b"9" * 18,), 10**18 - 1), ((b"",), 400), ((b"0",), 400), ((b"01",), 400),
     ((b"-1",), 400), ((b"1.0",), 400), ((b"x",), 400), ((b"9" * 19,), 400), ((b"1\n",), 400), ((b"1", b"2"), 400)],
)  # fmt: skip
def test_a_fencing_token_is_one_positive_number(values: tuple[bytes, ...], token: int | None):
    head = [(b"host", b"127.0.0.1:8000"), (b"authorization", f"Bearer {CONTROL}".encode())]
    head += [(b"x-weir-fencing-token", value) for value in values]
    if token == 400:
        with pytest.raises(Refused, match="expected one X-Weir-Fencing-Token"):
            GATE.enter("POST", b"/resume", b"", head)
    else:
        assert GATE.enter("POST", b"/resume", b"", head).fencing_token == token
