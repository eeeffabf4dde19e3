"""The door of a page: fixed files, login, and the checks that stand before every route."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tools.dashboard.access import HEADERS, SESSION_S, Access, TooManyAttemptsError

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_MAX_BODY = 4096
#: Seen before anybody is let in: they hold nothing of a run.
_OPEN = ("/login", "/static/")


def routes(pages: Mapping[str, Response], access: Access) -> list[Route]:
    """Login, logout and the fixed files of a page."""

    async def login(request: Request) -> Response:
        if request.method != "POST":
            return pages["login.html"]
        if not same_origin(request):
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
        if not same_origin(request):
            raise HTTPException(403, "the form was sent by another page")
        response = RedirectResponse("/login", 303)
        response.delete_cookie(access.cookie, httponly=True, samesite="strict")
        return response

    async def static(request: Request) -> Response:
        found = pages.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        return found

    return [
        Route("/login", login, methods=["GET", "POST"]),
        Route("/logout", logout, methods=["POST"]),
        Route("/static/{name}", static),
    ]


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


def fixed_pages(*folders: str) -> dict[str, Response]:
    """File name -> reply, of folders of templates; read once: a URL only ever looks up this table."""
    found = {
        entry.name: Response(entry.read_bytes(), media_type=_TYPES[suffix])
        for folder in folders
        for entry in files("tools").joinpath("templates", folder).iterdir()
        if (suffix := f".{entry.name.rpartition('.')[2]}") in _TYPES
    }
    login = bytes(found["login.html"].body).decode()
    found["login_wrong.html"] = Response(login.replace('id="wrong" hidden', 'id="wrong"'), media_type=_TYPES[".html"])
    return found


def same_origin(request: Request) -> bool:
    """Whether a form was sent by this page; programs that are no browsers say nothing of that."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


async def short_body(request: Request) -> bytes:
    """What was sent: 4 KiB at most, or `HTTPException` 413."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_BODY:
            raise HTTPException(413, "expected a short request")
    return body


async def _given_token(request: Request) -> str:
    body = await short_body(request)
    fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=8)
    return fields.get("token", [""])[0].strip()


def _address(request: Request) -> str:
    """Where a request comes from; behind a proxy on this machine, what that says of it."""
    return request.client.host if request.client is not None else ""


def _later(error: TooManyAttemptsError) -> Response:
    return _plain(f"{error}\n", 429, {"retry-after": str(error.wait_s)})


def _plain(text: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return Response(text, status, media_type="text/plain; charset=utf-8", headers=headers)


async def refusal(request: Request, error: Exception) -> Response:
    """An HTTP error as a line of text."""
    assert isinstance(error, HTTPException)
    return _plain(f"{error.detail}\n", error.status_code, error.headers)
