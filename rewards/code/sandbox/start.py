"""From a machine to a pool of sandboxes that were proven on it.

There is one tier, bubblewrap: the answer's system calls reach the machine's own kernel through a filter. gVisor's
`runsc`, which puts a kernel of its own between them, is not supported: it would be another `box.Tier`.
"""

from __future__ import annotations

from rewards.code.sandbox.bubblewrap import find_bubblewrap
from rewards.code.sandbox.interpreter import find_interpreter
from rewards.code.sandbox.limits import Limits, SandboxError
from rewards.code.sandbox.pool import SandboxPool
from rewards.code.sandbox.self_test import check
from rewards.code.sandbox.users import next_user


def open_pool(*, num_workers: int, limits: Limits | None = None, num_warm: int | None = None) -> SandboxPool:
    """A pool of sandboxes that hold on this machine.

    Raises:
      SandboxError: none does: says why, and what to install or allow.
    """
    for_others = next_user() is not None
    tier = find_bubblewrap(find_interpreter(for_others=for_others), for_others=for_others)
    pool = SandboxPool(tier, limits or Limits(), num_workers=num_workers, num_warm=num_warm)
    try:
        check(pool)
    except SandboxError as error:
        pool.close()
        raise SandboxError(f"{error}{_advice(str(error))}") from None
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


def _advice(said: str) -> str:
    if "amespace" in said or "uid map" in said or "Operation not permitted" in said:
        return (
            "; bubblewrap needs user namespaces: sysctl kernel.unprivileged_userns_clone=1 "
            "user.max_user_namespaces=15000 (Ubuntu: also kernel.apparmor_restrict_unprivileged_userns=0); in Docker, "
            "--security-opt seccomp=unconfined --security-opt apparmor=unconfined"
        )
    return ""
