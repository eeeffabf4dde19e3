"""A gateway with a fallback: its settings by a test, its records in the test's folder, and everybody consents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from serving_bridge.confidence import Calibration
from serving_bridge.fallback import Library, Records, Webhook
from serving_bridge.gateway import Caller, Fallback, GatewayError, OneTenant
from serving_bridge.safety import verify
from serving_bridge.settings import FallbackSettings
from serving_bridge.text import Tokenizer
from tests.support.gateway_world import Script, World, running_gateway

#: mean log-prob -0.5 gives 0.27, -0.05 gives 0.71
CALIBRATION = Calibration("mean", "platt", 100, slope=4.2, offset=1.1)
RIVERS = [
    {"id": "seine", "title": "Seine", "text": "The Seine flows through Paris. It is 777 km long."},
    {"id": "tiber", "title": "Tiber", "text": "The Tiber flows through Rome. It is 406 km long."},
]
QUESTION = [{"role": "user", "content": "How long is the Seine?"}]
UNSURE = {"calibration": "fitted.json", "min_confidence": 0.5}


class Consenting(OneTenant):
    """Everybody consents, and is the tenant that the header names."""

    def authenticate(self, headers: Any) -> Caller:
        return Caller(headers.get("x-tenant", "local"), consents=True, retention_days=30)


class Limited(OneTenant):
    """Nobody is admitted."""

    async def admit(self, *_: Any) -> Any:
        raise GatewayError(429, "the limit is reached", code="rate_limit_exceeded", retry_after_s=7)


def redacted(text: str) -> str | None:
    return None if "secret" in text else text.replace("Jane", "<NAME>")


def documents(folder: Path) -> dict[str, str]:
    path = folder / "rivers.jsonl"
    path.write_text("".join(json.dumps(river) + "\n" for river in RIVERS))
    return {"rivers": str(path)}


def played(
    folder: Path,
    tokenizer: Tokenizer,
    test: Callable[[World], Awaitable[None]],
    *scripts: Script,
    fitted: Calibration = CALIBRATION,
    previous: Any = None,
    guards: Any = None,
    admission: Any = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Runs a test on a gateway with these settings of [fallback]; what its log of fallbacks says."""
    found = FallbackSettings(**{"retry_wait_s": 0.05, "sample_share": 1.0, **settings})

    async def play() -> None:
        records = Records(folder / "fallback", "gateway-0", sample_share=found.sample_share, redact=redacted)
        fallback = Fallback(
            found,
            fitted if found.calibration else None,
            Library(found) if found.corpora else None,
            Webhook(found.webhook, key=b"k", timeout_s=found.webhook_timeout_s) if found.webhook else None,
            records,
            previous,
        )
        try:
            async with running_gateway(
                folder, tokenizer, *scripts, fallback=fallback, guards=guards, admission=admission or Consenting()
            ) as world:
                await test(world)
        finally:
            records.close()

    asyncio.run(play())
    assert not verify(folder / "fallback")["gateway-0"].problem
    return [json.loads(line) for line in (folder / "fallback" / "gateway-0.jsonl").read_text().splitlines()]


def told(answer: Any) -> tuple[str, str, str]:
    """(case, policy, text) of an answer that is not the model's own."""
    fallback = answer["weir"]["fallback"]
    return fallback["case"], fallback["policy"], answer["choices"][0]["message"]["content"]


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
