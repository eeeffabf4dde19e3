"""Python as a tool: a program in a sandbox of its own, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.code.sandbox import Report, SandboxPool
from rewards.contracts import ToolDefinition
from rewards.tools.toolbox import ToolError

DEFINITION = ToolDefinition(
    "python",
    "Runs a Python program and shows what it prints. Each call begins anew: no files, no variables and no network.",
    {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "the program; print what you want to see"}},
        "required": ["code"],
        "additionalProperties": False,
    },
)
_NOTHING = "(nothing was printed)"


async def run_program(pool: SandboxPool, code: str, *, deadline_s: float) -> str:
    """What the program prints, and its error's last line.

    Raises:
      ToolError: it took too long, or the sandbox ended.
    """
    return said(await pool.run_async(request(code, pool.limits.output_bytes), deadline_s), deadline_s)


def request(code: str, output_bytes: int) -> dict[str, Any]:
    """What the sandbox is asked: a program without input, of which no output is expected."""
    case = {"kind": "program", "stdin": "", "stdout": None, "limit": output_bytes}
    nothing: Mapping[str, Any] = {"prelude": "", "classes": "", "names": [], "modules": [], "helpers": {}}
    return {"code": code, **nothing, "cases": [case]}


def said(report: Report, deadline_s: float) -> str:
    """The report as a result for the policy; raises what `run_program` does."""
    if not report.outcomes:
        raise ToolError(f"the program ended its sandbox: {report.ended}")
    outcome = report.outcomes[0]
    if outcome["kind"] == "timeout":
        raise ToolError(f"the program took longer than {deadline_s:g} s")
    printed, why = str(outcome.get("printed", "")), str(outcome["why"])
    return "\n".join(part for part in (printed.rstrip("\n"), why) if part) or _NOTHING
