"""The page's routes: fixed files, and JSON of the watched runs; nothing of a URL ever names a file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tools.dashboard.access import HEADERS, SESSION_S, Access, TooManyAttemptsError
from tools.dashboard.answers import Wanted
from tools.dashboard.watch import MAX_RUNS, Watch

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_MAX_BODY = 4096
_MAX_QUERY = 500
#: Seen before anybody is let in: they hold nothing of a run.
_OPEN = ("/login", "/static/")


class _Known(msgspec.Struct, forbid_unknown_fields=True):
    """What a reader has of one run, see `Watch.changes`."""

    life: int
    tables: dict[str, tuple[int, int]]


_known_decoder = msgspec.json.Decoder(list[_Known])


def build_app(watch: Watch, access: Access) -> ASGIApp:
    """The page of these runs, for an ASGI server."""
    pages = _static()

    async def page(request: Request) -> Response:
        return pages["index.html"]

    async def login(request: Request) -> Response:
        if request.method != "POST":
            return pages["login.html"]
        if not _same_origin(request):
            raise HTTPException(403, "the form was sent by another page")
        given = await _given_token(request)
        try:
            is_right = access.admits(given, _address(request))
        except TooManyAttemptsError as error:
            return _later(error)
        if not is_right:
            return Response(pages["login_wrong.html"].body, 401, media_type=_TYPES[".html"])
        response = RedirectResponse("/", 303)
        over_tls = request.headers.get("x-forwarded-proto") == "https" or request.url.scheme == "https"
        response.set_cookie(
            access.cookie, access.new_session(), max_age=SESSION_S, httponly=True, samesite="strict", secure=over_tls
        )
        return response

    async def logout(request: Request) -> Response:
        if not _same_origin(request):
            raise HTTPException(403, "the form was sent by another page")
        response = RedirectResponse("/login", 303)
        response.delete_cookie(access.cookie, httponly=True, samesite="strict")
        return response

    async def static(request: Request) -> Response:
        found = pages.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        return found

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
            Route("/login", login, methods=["GET", "POST"]),
            Route("/logout", logout, methods=["POST"]),
            Route("/static/{name}", static),
            Route("/api/about", about),
            Route("/api/changes", changes),
            Route("/api/answers", answers),
        ],
        exception_handlers={HTTPException: _refusal},
    )
    return Doorkeeper(app, access)


class Doorkeeper:
    """Stands before the page: checks host and token of every request, and puts the headers on every reply."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refused = self._refused(Request(scope))
        await (refused or self._app)(scope, receive, send_with_headers)

    def _refused(self, request: Request) -> Response | None:
        hosts = Headers(scope=request.scope).getlist("host")
        if len(hosts) != 1 or not self._access.knows_host(hosts[0]):
            return _plain("this page does not answer to that host name (--allow-host NAME adds one)\n", 421)
        path = request.url.path
        if any(path == open_ or (open_.endswith("/") and path.startswith(open_)) for open_ in _OPEN):
            return None
        authorization = request.headers.get("authorization", "")
        try:
            if self._access.lets_in(authorization, request.cookies.get(self._access.cookie, ""), _address(request)):
                return None
        except TooManyAttemptsError as error:
            return _later(error)
        if path == "/" and not authorization:
            return RedirectResponse("/login", 303)
        return _plain("a token is needed\n", 401, {"www-authenticate": "Bearer"})


def _address(request: Request) -> str:
    """Where a request comes from; behind a proxy on this machine, what that says of it."""
    return request.client.host if request.client is not None else ""


def _later(error: TooManyAttemptsError) -> Response:
    return _plain(f"{error}\n", 429, {"retry-after": str(error.wait_s)})


def _static() -> dict[str, Response]:
    """File name -> reply, read once: a URL only ever looks up this table."""
    folder = files("tools").joinpath("templates", "dashboard")
    found = {
        entry.name: Response(entry.read_bytes(), media_type=_TYPES[suffix])
        for entry in folder.iterdir()
        if (suffix := f".{entry.name.rpartition('.')[2]}") in _TYPES
    }
    login = bytes(found["login.html"].body).decode()
    found["login_wrong.html"] = Response(login.replace('id="wrong" hidden', 'id="wrong"'), media_type=_TYPES[".html"])
    return found


async def _given_token(request: Request) -> str:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_BODY:
            raise HTTPException(413, "expected a short form")
    fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=8)
    return fields.get("token", [""])[0].strip()


def _same_origin(request: Request) -> bool:
    """Whether a form was sent by this page; programs that are no browsers say nothing of that."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


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


def _plain(text: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return Response(text, status, media_type="text/plain; charset=utf-8", headers=headers)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _plain(f"{error.detail}\n", error.status_code, error.headers)
