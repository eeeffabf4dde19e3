"""From a machine to a pool of sandboxes that were proven on it.

There are two tiers. With bubblewrap the answer's system calls reach the machine's own kernel, through a filter. With
gVisor's runsc they reach a kernel of its own, and only that one's few calls reach the machine's. Nobody gets another
tier than the one he asked for.
"""

from __future__ import annotations

from rewards.code.sandbox.box import Tier
from rewards.code.sandbox.bubblewrap import find_bubblewrap
from rewards.code.sandbox.gvisor import find_runsc
from rewards.code.sandbox.interpreter import find_interpreter
from rewards.code.sandbox.limits import Limits, SandboxError
from rewards.code.sandbox.pool import SandboxPool
from rewards.code.sandbox.self_test import check
from rewards.code.sandbox.users import next_user

#: what `task.sandbox` may name; the first is the default
TIERS = ("bubblewrap", "runsc")


def open_pool(
    *, num_workers: int, limits: Limits | None = None, num_warm: int | None = None, sandbox: str = "bubblewrap"
) -> SandboxPool:
    """A pool of sandboxes that hold on this machine.

    Args:
      sandbox: one of `TIERS`.

    Raises:
      SandboxError: none does: says why, and what to install or allow.
    """
    pool = SandboxPool(_tier(sandbox), limits or Limits(), num_workers=num_workers, num_warm=num_warm)
    try:
        check(pool)
    except SandboxError as error:
        pool.close()
        raise SandboxError(f"{error}{_advice(str(error), sandbox)}") from None
    except BaseException:
        pool.close()
        raise
    return pool


def missing() -> str:
    """Why this machine can't run hostile code, in words; empty if it can."""
    try:
        open_pool(num_workers=1).close()
    except SandboxError as error:
        return str(error)
    return ""


def _tier(sandbox: str) -> Tier:
    for_others = next_user() is not None
    match sandbox:
        case "bubblewrap":
            return find_bubblewrap(find_interpreter(for_others=for_others), for_others=for_others)
        case "runsc":
            return find_runsc(find_interpreter(for_others=for_others), for_others=for_others)
    raise SandboxError(f"no sandbox is called {sandbox!r}; known: {', '.join(TIERS)}")


def _advice(said: str, sandbox: str) -> str:
    if "amespace" in said or "uid map" in said or "Operation not permitted" in said:
        return (
            f"; {sandbox} needs user namespaces: sysctl kernel.unprivileged_userns_clone=1 "
            "user.max_user_namespaces=15000 (Ubuntu: also kernel.apparmor_restrict_unprivileged_userns=0); in Docker, "
            "--security-opt seccomp=unconfined --security-opt apparmor=unconfined"
        )
    return ""
