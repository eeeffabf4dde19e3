"""A round that another has followed changes nothing any more, however late its requests come."""

from __future__ import annotations

import pytest

from serving_bridge.access import Fence, Refused

CHANGES = (
    ("/pause", None),
    ("/resume", None),
    ("/abort_requests", None),
    ("/start_weight_update", None),
    ("/update_weights", None),
    ("/update_weight_version", None),
    ("/weir_swap", None),
    ("/weir_serve", None),
    ("/collective_rpc", "weir_stage"),
    ("/collective_rpc", "weir_release"),
)


def status(fence: Fence, path: str, call: str | None, token: int | None) -> int:
    try:
        fence.check(path, call, token)
    except Refused as refused:
        return refused.status
    return 200


def staged(fence: Fence, token: int, answer: int = 200) -> None:
    fence.check("/collective_rpc", "weir_stage", token)
    fence.answered("weir_stage", token, answer)


@pytest.mark.parametrize(("path", "call"), CHANGES)
def test_what_a_followed_round_asks_for_is_refused(path: str, call: str | None) -> None:
    fence = Fence()
    first, second = fence.next_token(), fence.next_token()
    staged(fence, first)
    assert status(fence, path, call, first) == 200
    staged(fence, second)
    assert status(fence, path, call, first) == 409
    assert status(fence, path, call, second) == 200


@pytest.mark.parametrize(("path", "call"), CHANGES)
@pytest.mark.parametrize("token", [None, 0, -1, 2, 10**9])
def test_a_token_that_was_never_given_opens_nothing(path: str, call: str | None, token: int | None) -> None:
    fence = Fence()
    fence.next_token()
    assert status(fence, path, call, token) == 400


@pytest.mark.parametrize(
    ("path", "call"),
    [("/health", None), ("/weight_info", None), ("/is_paused", None), ("/collective_rpc", "weir_status")],
)
def test_looking_needs_no_token(path: str, call: str | None) -> None:
    assert status(Fence(), path, call, None) == 200


def test_a_round_without_the_lease_stops_no_other() -> None:
    fence = Fence()
    first, second = fence.next_token(), fence.next_token()
    staged(fence, first)
    staged(fence, second, answer=500)
    assert status(fence, "/resume", None, first) == 200


def test_a_round_that_stages_late_does_not_come_back() -> None:
    fence = Fence()
    late, current = fence.next_token(), fence.next_token()
    fence.check("/collective_rpc", "weir_stage", late)
    staged(fence, current)
    fence.answered("weir_stage", late, 200)
    assert status(fence, "/resume", None, current) == 200
    assert status(fence, "/collective_rpc", "weir_stage", late) == 409
