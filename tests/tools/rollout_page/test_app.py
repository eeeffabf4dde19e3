"""The page of rollouts over ASGI: what it shows, who may press a button, and what a button does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serving_bridge.canary import Controller
from serving_bridge.database import DatabaseError
from tests.support.canary_world import NAMESPACE, CanaryWorld
from tools.dashboard import access
from tools.rollout_page import Drift, build_rollout_app

TOKEN = "a-token-that-nobody-guesses"
PAGE = "http://127.0.0.1:8791"
KEY = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[CanaryWorld]:
    world = CanaryWorld.of(tmp_path)
    world.fill()
    yield world
    world.close()


def client(world: CanaryWorld, token: str | None = TOKEN) -> TestClient:
    names = iter(range(1000))
    app = build_rollout_app(
        world.place(),
        access.access_to("127.0.0.1", 8791, token),
        lambda: Controller(world.place(), holder=f"page {next(names)}"),
        Drift(world.log, NAMESPACE),
    )
    return TestClient(app, base_url=PAGE, follow_redirects=False)


def test_it_shows_versions_traffic_and_the_numbers_of_a_verdict(world: CanaryWorld) -> None:
    with client(world) as page:
        assert page.get("/api/rollouts", headers=KEY).json()["rollouts"] == []
        controller = world.start()
        world.pass_time()
        controller.look()
        world.errors["canary"] = 0.9
        world.pass_time()
        controller.look()
        found = page.get("/api/rollouts", headers=KEY).json()
    assert [(one["number"], one["stage"], one["aliases"]) for one in found["entries"]] == [
        (2, "rolled_back", []),
        (1, "passed", ["stable"]),
    ]
    assert (found["traffic"], found["can_act"]) == (
        {"canary": 0.0, "shadow": 0.0, "said": "stable answers everything"},
        True,
    )
    assert [one["verdict"] for one in found["looks"]] == ["next", "failure"]
    assert found["rollouts"][0]["reason"].startswith("error is worse: more by at least")
    assert any(one["is_worse"] for one in found["decision"]["findings"])


def test_it_says_who_waits_for_what(world: CanaryWorld) -> None:
    def waits(page: TestClient) -> list[tuple[str, str]]:
        return [(one["who"], one["what"]) for one in page.get("/api/rollouts", headers=KEY).json()["waits"]]

    with client(world) as page:
        assert waits(page) == [("entry 2", "waits for tools.canary start")]
        controller = world.start()
        assert waits(page) == [("rollout 1", "waits for its first look")]
        world.clock.now_s += 1
        world.answers(10)
        controller.look()
        assert ("rollout 1", "1 s of 60") in waits(page)
        controller.release()
        world.rollouts.ask(NAMESPACE, "pause")
        assert ("rollout 1", "waits for a controller: tools.canary run") in waits(page)
        assert ("rollout 1", "waits for the controller, to pause it") in waits(page)
        world.errors["canary"] = 0.9
        world.pass_time()
        controller.look()
        assert waits(page) == [("training of default", "waits for tools.canary release")]
        world.rollouts.release(NAMESPACE)
        assert waits(page) == []


def test_buttons_do_what_they_say_after_a_confirmation(world: CanaryWorld) -> None:
    controller = world.start()
    controller.release()
    with client(world) as page:

        def act(**body: str) -> tuple[int, str]:
            reply = page.post("/api/act", json=body, headers=KEY)
            return reply.status_code, reply.text

        assert act(what="pause", confirm="pause 7") == (409, "expected pause 1 as confirmation\n")
        assert world.agreement()[0] == "running"
        assert act(what="pause", confirm="pause 1") == (200, '{"said":"rollout 1: pause is done"}')
        assert world.agreement()[0] == "paused"
        controller.hold()
        status, said = act(what="abort", confirm="abort 1")
        assert (status, "the controller does it" in said) == (200, True)
        controller.look()
        assert world.agreement()[:4] == ("aborted", None, world.stable, 0.0)
        assert act(what="abort", confirm="abort 1") == (409, "no rollout is under way\n")
        controller.release()
        assert act(what="rollback", confirm="rollback 2", reason="x")[0] == 409
        assert act(what="rollback", confirm="rollback 1", reason=" ") == (409, "a rollback needs a reason\n")
        assert "nothing to go back to" in act(what="rollback", confirm="rollback 1", reason="x")[1]
        lease = world.index.aliases.take_lease(NAMESPACE, "ann", 60)
        world.index.aliases.move(lease, {"stable": 2, "previous": 1}, actor="ann", reason="x")
        world.index.aliases.release_lease(lease)
        assert act(what="rollback", confirm="rollback 2", reason="bad") == (200, '{"said":"stable is entry 1 again"}')
        assert world.index.aliases.current(NAMESPACE) == {"stable": 1, "previous": 2}


def test_nobody_presses_a_button_without_the_admin_key(world: CanaryWorld) -> None:
    world.start().release()
    body = {"what": "abort", "confirm": "abort 1"}
    with client(world) as page:
        assert page.get("/").headers["location"] == "/login"
        assert [page.get("/api/rollouts").status_code, page.post("/api/act", json=body).status_code] == [401, 401]
        wrong = {"authorization": "Bearer something-else-entirely"}
        assert page.post("/api/act", json=body, headers=wrong).status_code == 401
        for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
            assert page.post("/api/act", json=body, headers=KEY | headers).status_code == 403
        as_form = KEY | {"content-type": "text/plain"}
        assert page.post("/api/act", content='{"what": "abort"}', headers=as_form).status_code == 403
        for content, status in ((b"{", 400), (b'{"what": "promote", "confirm": ""}', 400), (b" " * 5000, 413)):
            json = KEY | {"content-type": "application/json"}
            assert page.post("/api/act", content=content, headers=json).status_code == status
        assert page.get("/api/act", headers=KEY).status_code == 405
        assert page.get("/", headers=KEY | {"host": "evil.example"}).status_code == 421
    with client(world, token=None) as page:
        assert page.get("/api/rollouts").json()["can_act"] is False
        assert page.post("/api/act", json=body).status_code == 403
    assert world.agreement()[0] == "running"


def test_a_database_that_is_away_is_no_mistake_of_the_reader(
    world: CanaryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise DatabaseError("the database is away")

    with client(world) as page:
        monkeypatch.setattr(world.rollouts, "latest", away)
        monkeypatch.setattr(world.rollouts, "open_one", away)
        shown = page.get("/api/rollouts", headers=KEY)
        pressed = page.post("/api/act", json={"what": "abort", "confirm": "abort 1"}, headers=KEY)
    assert [(one.status_code, one.text) for one in (shown, pressed)] == [(503, "the database is away\n")] * 2
