"""The page's routes: fixed files, and JSON of the watched runs; nothing of a URL ever names a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tools.dashboard import door
from tools.dashboard.access import Access
from tools.dashboard.answers import Wanted
from tools.dashboard.watch import MAX_RUNS, Watch

_MAX_QUERY = 500


class _Known(msgspec.Struct, forbid_unknown_fields=True):
    """What a reader has of one run, see `Watch.changes`."""

    life: int
    tables: dict[str, tuple[int, int]]


_known_decoder = msgspec.json.Decoder(list[_Known])


def build_app(watch: Watch, access: Access) -> ASGIApp:
    """The page of these runs, for an ASGI server."""
    pages = door.fixed_pages("dashboard")

    async def page(request: Request) -> Response:
        return pages["index.html"]

    async def about(request: Request) -> Response:
        return _json(watch.about() | {"locked": access.token is not None})

    async def changes(request: Request) -> Response:
        text = request.query_params.get("have", "[]")
        try:
            have = _known_decoder.decode(text)
        except msgspec.MsgspecError as error:
            raise HTTPException(400, f"have: {error}") from error
        known = [msgspec.structs.asdict(one) for one in have[:MAX_RUNS]]
        return _json(await run_in_threadpool(watch.changes, known))

    async def answers(request: Request) -> Response:
        return _json(await run_in_threadpool(watch.answers, _wanted(request.query_params)))

    app = Starlette(
        routes=[
            Route("/", page),
            *door.routes(pages, access),
            Route("/api/about", about),
            Route("/api/changes", changes),
            Route("/api/answers", answers),
        ],
        exception_handlers={HTTPException: door.refusal},
    )
    return door.Doorkeeper(app, access)


def _wanted(query: Mapping[str, str]) -> Wanted:
    runs = query.get("runs")
    return Wanted(
        text=query.get("text", "")[:_MAX_QUERY],
        source=query.get("source", "")[:20],
        low=_number(query, "low"),
        high=_number(query, "high"),
        first_step=_whole(query, "first"),
        last_step=_whole(query, "last"),
        runs=None if runs is None else frozenset(int(run) for run in runs.split(",")[:MAX_RUNS] if run.isdecimal()),
        page=min(max(_whole(query, "page") or 0, 0), 10**6),
    )


def _number(query: Mapping[str, str], name: str) -> float | None:
    text = query.get(name, "").strip()
    try:
        return float(text) if text else None
    except ValueError:
        raise HTTPException(400, f"{name}: expected a number") from None


def _whole(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name, "").strip()
    try:
        return int(text[:18]) if text else None
    except ValueError:
        raise HTTPException(400, f"{name}: expected a whole number") from None


def _json(value: Any) -> Response:
    """What is no finite number becomes null."""
    return Response(msgspec.json.encode(value), media_type="application/json")
