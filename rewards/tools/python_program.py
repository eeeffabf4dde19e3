"""Python as a tool: a program in a sandbox of its own, and what it prints."""

from __future__ import annotations

from rewards.code.sandbox import SandboxError, SandboxPool
from rewards.contracts import ToolDefinition
from rewards.tools.toolbox import BrokenToolError, ToolError

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


def run_program(pool: SandboxPool, code: str, *, deadline_s: float) -> str:
    """What the program prints, and its error's last line. Blocks.

    Raises:
      ToolError: it took too long.
      BrokenToolError: no sandbox starts.
    """
    try:
        program = pool.run_program(code, "", deadline_s)
    except SandboxError as error:
        raise BrokenToolError(f"the tool python can't run: {error}") from None
    if program.why.startswith("timeout"):
        raise ToolError(f"the program took longer than {deadline_s:g} s")
    return "\n".join(part for part in (program.printed.rstrip("\n"), program.why) if part) or _NOTHING
