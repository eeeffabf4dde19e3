"""A guard model behind an endpoint of OpenAI's API; implements `serving_bridge.safety.ModelGuard`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import aiohttp
import msgspec

from learner_jax.runtime import WeirError
from serving_bridge.guard_models.formats import FORMATS, Said
from serving_bridge.safety import Messages, Opinion, Stage, Verdict, content_of
from serving_bridge.settings import GuardModelSettings, SafetySettings

_MAX_BYTES = 1 << 20
#: of a conversation: a guard has a context of its own
_MAX_CHARS = 24_000
#: of these, what the messages before the judged one get where that is long, too
_BEFORE_CHARS = 8_000
_LEFT_OUT = "\n...\n"


class GuardModelError(WeirError, ValueError):
    """A guard model of the settings can't be asked."""

    can_heal = False


class ServedGuard:
    """Asks one guard model. What is no verdict is the verdict `error`, and what can't be reached raises.

    Args:
      key: sent as bearer token; "" for none.
      timeout_s: for one answer.
    """

    def __init__(self, settings: GuardModelSettings, *, key: str, timeout_s: float) -> None:
        self._settings, self._key, self._timeout_s = settings, key, timeout_s
        self._format = FORMATS[settings.format]
        self._session: aiohttp.ClientSession | None = None
        self.weight = settings.weight

    @property
    def name(self) -> str:
        return self._settings.name

    @property
    def version(self) -> str:
        """What the audit log keeps: format and model."""
        return f"{self._settings.format}:{self._settings.model}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps connections to its server while it is open; needed before `judge`."""
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        async with aiohttp.ClientSession(
            timeout=timeout, headers=headers, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            self._session = session
            try:
                yield
            finally:
                self._session = None

    async def judge(self, messages: Messages, stage: Stage) -> Opinion:
        """Judges the last message in its conversation, of which it is shown at most 24,000 characters."""
        said = await self._said(bounded(messages, _MAX_CHARS, before=_BEFORE_CHARS), stage)
        return Opinion(self.name, self.version, said.verdict, said.categories, reason=said.reason)

    async def _said(self, messages: Messages, stage: Stage) -> Said:
        if self._session is None:
            raise RuntimeError("the guard is not running")
        body = {"model": self._settings.model, **self._format.body(messages, stage)}
        url = self._settings.url.rstrip("/") + self._format.route
        async with self._session.post(url, json=body, allow_redirects=False) as response:
            content = b""
            async for block in response.content.iter_any():
                content += block
                if len(content) > _MAX_BYTES:
                    return Said(Verdict.ERROR, reason="its answer is too large")
        if response.status != 200:
            return Said(Verdict.ERROR, reason=f"it answered {response.status}")
        try:
            return self._format.read(msgspec.json.decode(content)["choices"])
        except (
            msgspec.MsgspecError,
            UnicodeDecodeError,
            RecursionError,
            LookupError,
            TypeError,
            AttributeError,
            ValueError,
        ):
            return Said(Verdict.ERROR, reason="its answer is no verdict")


def served_guards(settings: SafetySettings, environment: Mapping[str, str] = os.environ) -> list[ServedGuard]:
    """The guard models of [safety].

    Raises:
      GuardModelError: a key that the settings name is not in the environment.
    """
    found = []
    for model in settings.models:
        key = environment.get(model.api_key_env, "") if model.api_key_env else ""
        if model.api_key_env and not key:
            raise GuardModelError(f"safety.models {model.name!r}: the environment has no {model.api_key_env}")
        found.append(ServedGuard(model, key=key, timeout_s=2 * settings.deadline_s + 1))
    return found


def bounded(messages: Messages, limit: int, *, before: int) -> list[dict[str, str]]:
    """Messages with role and content, of at most so many characters together.

    Short messages stay whole. Of long ones the beginning and the end are kept, so that nothing is hidden by what is put
    behind it. The last message gets what the others leave, and they get `before` where it is long, too.
    """
    texts = [content_of(message) for message in messages]
    if sum(map(len, texts)) > limit:
        earlier = [len(text) for text in texts[:-1]]
        given = _shares(earlier, max(before, limit - len(texts[-1])))
        given.append(limit - sum(given))
        texts = [_cut(text, most) for text, most in zip(texts, given, strict=True)]
    return [
        {"role": str(message.get("role") or "user"), "content": text}
        for message, text in zip(messages, texts, strict=True)
    ]


def _shares(sizes: Sequence[int], limit: int) -> list[int]:
    """What each gets of a limit: the small ones all they need, the others the same."""
    shares, left = [0] * len(sizes), limit
    for number, place in enumerate(sorted(range(len(sizes)), key=lambda at: sizes[at])):
        shares[place] = min(sizes[place], left // (len(sizes) - number))
        left -= shares[place]
    return shares


def _cut(text: str, most: int) -> str:
    """The beginning and the end of a text, with a sign between them where there is room for it."""
    if len(text) <= most:
        return text
    sign = _LEFT_OUT if most > 4 * len(_LEFT_OUT) else ""
    first = (most - len(sign) + 1) // 2
    last = most - len(sign) - first
    return text[:first] + sign + text[len(text) - last :]
