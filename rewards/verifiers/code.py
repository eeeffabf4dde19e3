"""`code`: an answer's last block of Python, run with the row's tests in a sandbox (see `rewards.code.verifier`)."""

from __future__ import annotations

from learner_jax.runtime import DoorError
from rewards.code.sandbox import SandboxError
from rewards.code.verifier import CodeVerifier
from rewards.verifiers.verifier import Verifier


def create(*, deadline_s: float, num_workers: int, sandbox: str = "bubblewrap") -> Verifier:
    try:
        return CodeVerifier(num_workers=num_workers, deadline_s=deadline_s, sandbox=sandbox)
    except SandboxError as error:
        raise DoorError(f"verifier 'code': {error}") from None
