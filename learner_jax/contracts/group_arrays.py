"""The arrays of a whole group looked at once, which costs about as much as looking at those of one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from learner_jax.contracts.record_bounds import MAX_REWARD, MIN_LOGPROB

#: Arrays of a trajectory, as they lie on the wire.
ARRAY_DTYPES: Mapping[str, np.dtype] = {
    "tokens": np.dtype("<i4"),
    "loss_mask": np.dtype("?"),
    "behavior_logprobs": np.dtype("<f4"),
    "policy_version": np.dtype("<i4"),
    "turn": np.dtype("<i4"),
    "rewards": np.dtype("<f4"),
}
#: Value of `policy_version` on tokens that no policy sampled (prompt and environment tokens).
NOT_SAMPLED = -1
#: Log-probabilities may be above 0 by so much.
ROUNDING = 1e-4


def arrays_hold(group: Sequence[Any]) -> bool:
    """Whether the arrays of all trajectories keep what `Trajectory.validate` asks of them.

    False says only that each of them must be looked at: `validate` finds the one that is wrong, and names it.
    """
    lengths = [len(trajectory.tokens) for trajectory in group]
    if not lengths or min(lengths) == 0 or not all(trajectory.is_judged for trajectory in group):
        return False
    for trajectory, length in zip(group, lengths, strict=True):
        for name, dtype in ARRAY_DTYPES.items():
            array = getattr(trajectory, name)
            if array.shape != (length,) or array.dtype != dtype:
                return False
    tokens, mask, logprobs, version, turn, rewards = (
        np.concatenate([getattr(trajectory, name) for trajectory in group]) for name in ARRAY_DTYPES
    )
    starts = np.cumsum([0, *lengths[:-1]])
    bits, goes_down = mask.view(np.uint8), turn[1:] < turn[:-1]
    goes_down[starts[1:] - 1] = False  # from one trajectory to the next
    return bool(
        bits.max() == 1
        and np.maximum.reduceat(bits, starts).all()
        and not mask[starts].any()
        and logprobs.min() >= MIN_LOGPROB
        and logprobs.max() <= ROUNDING
        and max(-float(rewards.min()), float(rewards.max())) * max(lengths) <= MAX_REWARD
        and version.min() >= NOT_SAMPLED
        and ((version >= 0) == mask).all()
        and tokens.min() >= 0
        and turn[starts].min() >= 0
        and not goes_down.any()
    )
