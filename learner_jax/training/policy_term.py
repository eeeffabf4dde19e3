"""The policy's objective that a run names, one of Weir's or one from outside: found, checked and batched."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from learner_jax.runtime import DoorError
from learner_jax.settings import OBJECTIVE_DOOR, PolicySettings

#: Arrays that an objective may name: of one row, [T].
ARRAYS = (
    "logprobs",
    "log_ratios",
    "proximal_log_ratios",
    "staleness_log_ratios",
    "advantages",
    "loss_mask",
    "segments",
)
#: Settings of learner.loss.policy that it may name.
OPTIONS = ("clip_low", "clip_high", "dual_clip", "importance", "importance_cap")
_PROBED_TOKENS = 8


@dataclass(frozen=True)
class PolicyObjective:
    """The loss of every token of a batch, from a function of one row.

    Attributes:
      name: as learner.loss.policy.objective has it.
      function: takes those of `ARRAYS` and `OPTIONS` that its parameters name.
      arrays, options: those names.
      token_local: a token's loss depends on that token alone; the function says so by an attribute `token_local`.
      packs: a row may hold several sequences: the function is token-local, or names `segments`.
    """

    name: str
    function: Callable[..., Any]
    arrays: tuple[str, ...]
    options: Mapping[str, Any]
    token_local: bool
    packs: bool

    def __call__(self, arrays: Mapping[str, Array | None]) -> tuple[Float[Array, "B T"], dict[str, Array]]:
        """(loss of every token, values of every token for the log); `arrays` has [B, T] for each of `ARRAYS`.

        Raises:
          DoorError: the function fails, or returns something of another shape.
        """
        return jax.vmap(self._row)({name: arrays[name] for name in self.arrays})

    def _row(self, arrays: dict[str, Array | None]) -> tuple[Array, dict[str, Array]]:
        what = f"{OBJECTIVE_DOOR.setting} {self.name!r}"
        try:
            found = self.function(**arrays, **self.options)
        except Exception as error:
            raise DoorError(f"{what} failed: {type(error).__name__}: {error}") from error
        loss, values = found if isinstance(found, tuple) and len(found) == 2 else (found, {})
        shape = jnp.shape(next(array for array in arrays.values() if array is not None))
        for label, value in {"loss": loss, **values}.items():
            if getattr(value, "shape", None) != shape:
                got = getattr(value, "shape", type(value).__name__)
                raise DoorError(f"{what} returned a {label} of shape {got}, expected {shape}: one number per token")
        return loss.astype(jnp.float32), values


def policy_objective(settings: PolicySettings) -> PolicyObjective:
    """The objective that the settings name; one from outside is tried on a few tokens.

    Raises:
      DoorError: there is no such function, it names a parameter that no objective gets, it fails, or its loss or
        gradient is of another shape or not finite.
    """
    function = OBJECTIVE_DOOR.load(settings.objective)
    names = _parameter_names(function, settings.objective)
    arrays = tuple(name for name in ARRAYS if name in names)
    token_local = bool(getattr(function, "token_local", False))
    found = PolicyObjective(
        name=settings.objective,
        function=function,
        arrays=arrays,
        options={name: getattr(settings, name) for name in OPTIONS if name in names},
        token_local=token_local,
        packs=token_local or "segments" in arrays,
    )
    if settings.objective not in OBJECTIVE_DOOR.built_in:
        _try(found)
    return found


def _parameter_names(function: Any, name: str) -> frozenset[str]:
    """Names of the parameters that have to be given, or that we know."""
    known = (*ARRAYS, *OPTIONS)
    if not callable(function):
        raise DoorError(
            f"{OBJECTIVE_DOOR.setting} {name!r} is of type {type(function).__name__}, expected a function "
            f"whose parameters are some of {', '.join(known)}"
        )
    parameters = inspect.signature(function).parameters.values()
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    positional_only = {p.name for p in parameters if p.kind is p.POSITIONAL_ONLY}
    if unknown := sorted((needed - set(known)) | positional_only):
        raise DoorError(
            f"{OBJECTIVE_DOOR.setting} {name!r} has a parameter {unknown[0]!r}, expected only {', '.join(known)}; they "
            f"are given by name"
        )
    names = {p.name for p in parameters} & set(known)
    if not names & {"logprobs", "log_ratios", "proximal_log_ratios"}:
        raise DoorError(
            f"{OBJECTIVE_DOOR.setting} {name!r} names neither logprobs nor log_ratios nor proximal_log_ratios, "
            f"through which alone the policy gets a gradient"
        )
    return frozenset(names)


def _try(objective: PolicyObjective) -> None:
    """Loss and gradient on a few tokens: ratios of 1, far from 1 and beyond their bounds, advantages of both signs."""
    rng = np.random.default_rng(0)
    log_ratios = np.array([0.0, 0.0, 0.1, -0.1, 2.0, -2.0, 100.0, -100.0], np.float32)
    logprobs = -rng.random(_PROBED_TOKENS).astype(np.float32)
    advantages = np.resize(np.array([1.0, -1.0, 0.0], np.float32), _PROBED_TOKENS)
    mask = np.arange(_PROBED_TOKENS) > 0
    segments = np.zeros(_PROBED_TOKENS, np.int32)

    def loss(change: Array) -> tuple[Array, Array]:
        given: dict[str, Any] = {
            "logprobs": logprobs + change,
            "log_ratios": log_ratios + change,
            "proximal_log_ratios": log_ratios + change,
            "staleness_log_ratios": jnp.asarray(log_ratios),
            "advantages": jnp.asarray(advantages),
            "loss_mask": jnp.asarray(mask),
            "segments": jnp.asarray(segments),
        }
        token_loss, _ = objective({name: value[None] for name, value in given.items()})
        return jnp.sum(token_loss), token_loss

    gradient, values = jax.grad(loss, has_aux=True)(jnp.zeros(_PROBED_TOKENS, jnp.float32))
    for label, found in (("loss", np.asarray(values)[0]), ("gradient", np.asarray(gradient))):
        if not np.isfinite(found).all():
            token = int(np.flatnonzero(~np.isfinite(found))[0])
            raise DoorError(
                f"{OBJECTIVE_DOOR.setting} {objective.name!r}: the {label} is {found[token]} at a log ratio of "
                f"{log_ratios[token]:g} and an advantage of {advantages[token]:g}, expected a finite number; "
                f"learner_jax.losses.importance_ratios clips log ratios before the exponential"
            )
