"""The page's routes: fixed files, JSON of one namespace, and the few things that may be asked of its controller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from learner_jax.runtime import WeirError
from serving_bridge.canary import Controller, Place
from serving_bridge.database import DatabaseError
from serving_bridge.registry import NotHolderError
from tools.dashboard import Access, door
from tools.rollout_page.drift import Drift
from tools.rollout_page.shown import page_data


class Act(msgspec.Struct, forbid_unknown_fields=True):
    """What somebody asks for.

    Attributes:
      confirm: what the page had them type: the action and the number that it is for, such as "abort 3".
    """

    what: Literal["pause", "resume", "abort", "rollback"]
    confirm: str
    reason: str = ""


_decoder = msgspec.json.Decoder(Act)


def build_rollout_app(place: Place, access: Access, controller: Callable[[], Controller], drift: Drift) -> ASGIApp:
    """The page for an ASGI server. Buttons are there only where it has a token.

    Args:
      controller: makes one with a holder's name of its own.
    """
    pages, can_act = door.fixed_pages("dashboard", "rollouts"), access.token is not None

    async def page(request: Request) -> Response:
        return pages["rollouts.html"]

    async def rollouts(request: Request) -> Response:
        try:
            data = await run_in_threadpool(page_data, place, drift, can_act=can_act)
        except WeirError as error:
            raise _refused(error) from None
        return Response(msgspec.json.encode(data | {"locked": can_act}), media_type="application/json")

    async def act(request: Request) -> Response:
        if not can_act:
            raise HTTPException(403, "this page has no admin key: it was started without a token (--token-env NAME)")
        if not door.same_origin(request) or request.headers.get("content-type") != "application/json":
            raise HTTPException(403, "expected JSON from this page")
        said = await run_in_threadpool(_done, place, controller, await _asked(request))
        return Response(msgspec.json.encode({"said": said}), media_type="application/json")

    app = Starlette(
        routes=[
            Route("/", page),
            *door.routes(pages, access),
            Route("/api/rollouts", rollouts),
            Route("/api/act", act, methods=["POST"]),
        ],
        exception_handlers={HTTPException: door.refusal},
    )
    return door.Doorkeeper(app, access)


async def _asked(request: Request) -> Act:
    try:
        return _decoder.decode(await door.short_body(request))
    except msgspec.MsgspecError as error:
        raise HTTPException(400, str(error)) from None


def _done(place: Place, make: Callable[[], Controller], asked: Act) -> str:
    """Does what was asked, or has the controller that is at work do it. Raises `HTTPException`."""
    try:
        if asked.what == "rollback":
            return _rolled_back(place, make(), asked)
        rollout = place.rollouts.open_one(place.namespace)
        if rollout is None:
            raise HTTPException(409, "no rollout is under way")
        if asked.confirm != f"{asked.what} {rollout.rollout}":
            raise HTTPException(409, f"expected {asked.what} {rollout.rollout} as confirmation")
        place.rollouts.ask(place.namespace, asked.what)
        controller = make()
        try:
            controller.obey()
        except NotHolderError:
            return f"rollout {rollout.rollout}: the controller does it within a second or two"
        finally:
            controller.release()
        return f"rollout {rollout.rollout}: {asked.what} is done"
    except WeirError as error:
        raise _refused(error) from None


def _refused(error: WeirError) -> HTTPException:
    return HTTPException(503 if isinstance(error, DatabaseError) else 409, str(error))


def _rolled_back(place: Place, controller: Controller, asked: Act) -> str:
    stable = place.index.aliases.current(place.namespace).get("stable")
    if asked.confirm != f"rollback {stable}":
        raise HTTPException(409, f"expected rollback {stable} as confirmation: the entry that is stable now")
    if not asked.reason.strip():
        raise HTTPException(409, "a rollback needs a reason")
    try:
        number = controller.take_back(actor="page", reason=asked.reason[:500])
    finally:
        controller.release()
    return f"stable is entry {number} again"
