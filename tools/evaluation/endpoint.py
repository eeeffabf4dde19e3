"""An OpenAI-compatible endpoint as a model: chat or completions over HTTP, with bounded retries and nothing made up."""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp

from learner_jax.runtime import printable
from tools.evaluation.asking import Answer, Dialog, Identity, Measurement, Request
from tools.evaluation.errors import EndpointError, SuiteError
from tools.evaluation.pacing import Pacer
from tools.evaluation.problems import OpenSuite, SuiteProblem

Api = Literal["chat", "completions"]
ROUTES: dict[Api, str] = {"chat": "/chat/completions", "completions": "/completions"}
#: may pass by themselves
_RETRYABLE = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_MAX_BYTES = 32 << 20
_MAX_QUOTED = 300
_MAX_PAUSE_S = 60.0
_FINISHED = {"length": "length", "max_tokens": "length", "content_filter": "content_filter"}


class RefusedError(EndpointError):
    """The endpoint will answer in the same way again: key, name, address or request are wrong, or it talks nonsense."""

    can_heal = False


@dataclass(frozen=True)
class EndpointSettings:
    """How an endpoint is asked.

    Attributes:
      url: base, such as https://host/v1, or with the route at its end.
      model: name of the model there.
      key: sent as bearer token; never stored, printed or quoted. Empty: none is sent.
      key_name: of the environment variable that it came from, for errors.
      limit_field: of the request that bounds an answer's length; newer models of OpenAI take "max_completion_tokens".
      timeout_s: bound on a request.
      tries: of a request, the first included.
      first_pause_s: before the second try; doubled before each further one, to a minute at most.
      max_retry_after_s: longest pause that the endpoint may ask for.
    """

    url: str
    model: str
    api: Api = "chat"
    key: str = ""
    key_name: str = ""
    limit_field: str = "max_tokens"
    timeout_s: float = 600.0
    tries: int = 6
    requests_per_minute: float = 0.0
    first_pause_s: float = 1.0
    max_retry_after_s: float = 600.0


def base_url(url: str) -> str:
    """The address without a route or slash at its end.

    Raises:
      RefusedError: it is none, or it holds a name, key or query, which results would keep.
    """
    try:
        parts = urlsplit(url)
        named = bool(parts.username or parts.password or parts.query or parts.fragment)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        named, usable = False, False
    if named:
        raise RefusedError(
            "--endpoint holds a user name, password, query or fragment, which results would keep; give the address "
            "alone, and a key with --api-key-env"
        )
    if not usable or not url.isprintable() or " " in url:
        raise RefusedError(f"--endpoint {printable(url)[:_MAX_QUOTED]!r}: expected http://host:port/v1 or https://...")
    url = url.rstrip("/")
    for route in ROUTES.values():
        url = url.removesuffix(route)
    return url


class Endpoint:
    """Asks one endpoint; the session is given and stays the caller's."""

    def __init__(
        self,
        settings: EndpointSettings,
        session: aiohttp.ClientSession,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._settings, self._session, self._clock = settings, session, clock
        self._base = base_url(settings.url)
        self._url = self._base + ROUTES[settings.api]
        self._pacer = Pacer(settings.requests_per_minute)
        named = json.dumps(["endpoint", self._base, settings.api, settings.model]).encode()
        self._identity = Identity("endpoint", settings.model, hashlib.sha256(named).hexdigest()[:32])

    @property
    def identity(self) -> Identity:
        return self._identity

    def begin(self, suite: OpenSuite, problem: SuiteProblem) -> Dialog:
        own = problem.problem.prompt
        if suite.plays_episodes:
            raise SuiteError(
                f"suite {suite.name}: its environment has tools, waits for others or is an agent, which is played on "
                f"token ids: evaluate a model folder, a checkpoint or a weight store"
            )
        if problem.problem.tools:
            raise SuiteError(f"suite {suite.name}: prompts with tools can be asked of a model folder alone")
        if self._settings.api == "completions":
            of_messages = not isinstance(own, str | None)
            if suite.settings.system or suite.environment is not None or of_messages:
                what = "several turns" if suite.environment is not None else "messages of several roles"
                raise SuiteError(f"suite {suite.name} has {what}, which needs --endpoint-api chat")
            return Dialog((("user", suite.prompt(problem)),))
        return Dialog(suite.messages(problem))

    def go_on(self, suite: OpenSuite, dialog: Dialog, answer: Answer, observation: str) -> Dialog:
        return Dialog((*dialog.messages, ("assistant", answer.text), ("user", observation)))

    async def answer(self, request: Request) -> Answer:
        """One answer as text.

        Raises:
          RefusedError: asking again would give the same.
          EndpointError: all tries failed.
        """
        body = self._body(request)
        for attempt in range(1, self._settings.tries + 1):
            await self._pacer.turn()
            begun_s = self._clock()
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    status, headers, payload = await self._post(body)
            except TimeoutError:
                told, pause_s = f"no answer within {self._settings.timeout_s:g} s", 0.0
            except aiohttp.ClientError as error:
                told, pause_s = f"{type(error).__name__}: {self._safe(str(error))}", 0.0
            else:
                if status == 200:
                    return replace(self._read(payload), measured=Measurement(self._clock() - begun_s))
                told, pause_s = self._failed(status, headers, payload), _retry_after(headers)
            if attempt == self._settings.tries:
                break
            await self._wait(attempt, pause_s, told)
        raise EndpointError(
            f"{self._url} failed {self._settings.tries} times in a row, at last: {told}; the answers so far are kept, "
            f"and the same command goes on"
        )

    async def _wait(self, attempt: int, asked_s: float, told: str) -> None:
        if asked_s > self._settings.max_retry_after_s:
            raise EndpointError(
                f"{self._url} asks for a pause of {asked_s:g} s ({told}); the answers so far are kept: give the same "
                f"command again then"
            )
        if asked_s > 0:
            self._pacer.pause(asked_s)
        await asyncio.sleep(max(asked_s, min(_MAX_PAUSE_S, self._settings.first_pause_s * 2 ** (attempt - 1))))

    def _body(self, request: Request) -> dict[str, Any]:
        sampling, messages = request.sampling, request.dialog.messages
        body: dict[str, Any] = {"model": self._settings.model}
        if self._settings.api == "chat":
            body["messages"] = [{"role": role, "content": text} for role, text in messages]
        else:
            body["prompt"] = messages[-1][1]
        body |= {self._settings.limit_field: sampling.max_tokens, "temperature": sampling.temperature}
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if request.seed is not None:
            body["seed"] = request.seed
        return body

    async def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        headers = {"Authorization": f"Bearer {self._settings.key}"} if self._settings.key else {}
        # A redirect would carry the key to another host.
        async with self._session.post(self._url, json=body, headers=headers, allow_redirects=False) as response:
            payload = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                payload += chunk
                if len(payload) > _MAX_BYTES:
                    raise RefusedError(f"{self._url} answered with more than {_MAX_BYTES} bytes")
            return response.status, response.headers, bytes(payload)

    def _failed(self, status: int, headers: Mapping[str, str], payload: bytes) -> str:
        """What a status other than 200 says, where another try may help.

        Raises:
          RefusedError: it can't.
        """
        said = self._said(payload)
        told = f"status {status}{f': {said}' if said else ''}"
        if status in _RETRYABLE:
            return told
        match status:
            case 401 | 403:
                key = self._settings.key_name
                sent = f"the key in ${key} is not accepted" if key else "no key was sent: name the environment "
                sent += "" if key else "variable that holds it with --api-key-env"
                raise RefusedError(f"{self._url} refuses access ({told}): {sent}")
            case 404:
                hint = f"check --endpoint and --endpoint-model {printable(self._settings.model)}"
            case 400 | 422:
                hint = "the request is not what it takes: see the suite's sampling, and --endpoint-api"
            case _ if 300 <= status < 400:
                hint = "it points elsewhere, where no key is sent: give that address to --endpoint"
            case _:
                hint = "check --endpoint"
        raise RefusedError(f"{self._url} refuses ({told}): {hint}")

    def _said(self, payload: bytes) -> str:
        """The error's message in a body, or the body; cut, and safe to print."""
        text = payload.decode("utf-8", "replace")
        try:
            found = json.loads(text)
            error = found.get("error", found)
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, AttributeError, RecursionError):
            pass  # no error of OpenAI's form: what came is told as it is
        return self._safe(text)

    def _safe(self, text: str) -> str:
        key = self._settings.key
        text = text.replace(key, "[the key]") if key else text
        return printable(" ".join(text.split())[:_MAX_QUOTED])

    def _read(self, payload: bytes) -> Answer:
        """The answer in a body of status 200.

        Raises:
          RefusedError: it is none that OpenAI's API would give.
        """
        try:
            found = json.loads(payload)
            (choice, *_) = found["choices"]
            text = self._text(choice)
            usage = found.get("usage") or {}
            number = usage.get("completion_tokens")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            shown = self._safe(payload[: 2 * _MAX_QUOTED].decode("utf-8", "replace"))
            raise RefusedError(
                f"{self._url} does not answer as OpenAI's API does ({type(error).__name__}): {shown}; check --endpoint "
                f"and --endpoint-api"
            ) from None
        is_count = type(number) is int and number >= 0
        finished = _FINISHED.get(str(choice.get("finish_reason")), "stop")
        return Answer(text, finished, number if is_count else None)

    def _text(self, choice: Any) -> str:
        if self._settings.api == "completions":
            text = choice["text"]
        else:
            message = choice["message"]
            text = message.get("content")
            if text is None:  # a refusal, or thoughts that used up the tokens
                text = message.get("refusal") or ""
        if not isinstance(text, str):
            raise TypeError(f"the text is a {type(text).__name__}")
        return text.encode("utf-8", "replace").decode("utf-8")


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the header Retry-After asks for, a number or a date; 0 if there is none that makes sense."""
    value = headers.get("Retry-After", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return seconds if 0.0 < seconds < float("inf") else 0.0
