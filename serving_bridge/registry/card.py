"""An entry as a model card: what people read before they use a model, in the layout of Hugging Face's hub."""

from __future__ import annotations

import time
from collections.abc import Sequence

from learner_jax.contracts import quoted
from serving_bridge.registry.rows import Event, Standing


def model_card(standing: Standing, events: Sequence[Event]) -> str:
    """Markdown; what users wrote is shown as code, so that none of it is markup."""
    entry = standing.entry
    rows = {
        "stage": standing.stage,
        "aliases": ", ".join(standing.aliases) or "none",
        "made by": f"{entry.origin.kind} {_code(entry.origin.run)}, version {entry.origin.version}, step "
        f"{entry.origin.step}",
        "code": _code(entry.origin.code),
        "parent": "none" if entry.parent is None else f"{entry.namespace}/{entry.parent}",
        "parameters": f"{entry.num_parameters:,} of {entry.dtype}",
        "content": _code(entry.content),
        "tokenizer": _code(entry.tokenizer),
        "registered": f"{_time(entry.created_s)} by {_code(entry.actor)}",
        "note": _code(entry.note),
        "consent list": _code(entry.consent),
    }
    lines = [f"# {entry.id}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items() if value]
    if entry.data:
        lines += ["", "## Training data", "", "| source | rows | sha256 |", "|---|---|---|"]
        lines += [
            f"| {_code(one.source)} | {one.first:,} to {one.last:,} | {_code(one.sha256)} |" for one in entry.data
        ]
    if entry.versions:
        lines += ["", "## Versions", "", "| of | version |", "|---|---|"]
        lines += [f"| {_code(name)} | {_code(value)} |" for name, value in sorted(entry.versions.items())]
    reports = [event for event in events if event.kind == "report"]
    if reports:
        lines += ["", "## Evaluations", "", "| when | verdict | report | by |", "|---|---|---|---|"]
        lines += [
            f"| {_time(event.created_s)} | {_code(event.body.get('verdict', ''))} | "
            f"{_code(event.body.get('file', {}).get('name', ''))} | {_code(event.actor)} |"
            for event in reports
        ]
    signatures = [event for event in events if event.kind == "signature"]
    if signatures:
        lines += ["", "## Signatures", "", "| when | key | by |", "|---|---|---|"]
        lines += [
            f"| {_time(event.created_s)} | {_code(event.body.get('key', ''))} | {_code(event.actor)} |"
            for event in signatures
        ]
    lines += ["", "## History", ""]
    lines += [f"- {_time(event.created_s)}: {_event(event)}" for event in events]
    lines += ["", "## Files", "", "| file | bytes | sha256 |", "|---|---|---|"]
    lines += [f"| {_code(file.name)} | {file.num_bytes:,} | {_code(file.sha256)} |" for file in entry.files]
    return "\n".join(lines) + "\n"


def _event(event: Event) -> str:
    what = event.kind.replace("_", " ")
    if event.kind == "stage":
        what = f"{event.body.get('old')} to {event.body.get('new')}"
    why = f" ({_code(event.reason)})" if event.reason else ""
    return f"{what}, by {_code(event.actor)}{why}"


def _code(text: object) -> str:
    """As code in a table's cell; "" stays empty."""
    shown = quoted(text, 300).replace("`", "'").replace("|", "/")
    return f"`{shown}`" if shown else ""


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
