"""Peak memory of the fused output head against one that holds all logits: forward and backward pass, fp32, once.

Each head runs in a fresh process, which prints one JSON line: what the compiler reserves besides the arguments, and the
most memory that the process really had, with Python, JAX and compilation in it.

python -m tools.bench.learner.head --head fused|naive [--tokens 8192] [--vocab 151669] [--hidden 128]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from learner_jax.models import fused_loss
from learner_jax.settings import LearnerSettings
from tools.bench import BenchmarkError
from tools.bench.learner import peers
from tools.bench.learner.report import HEAD_AIM, Verdict, verdict
from tools.bench.learner.sides import process_environment
from tools.bench.learner.worker import peak_rss_mb
from tools.bench.timing import positive
from tools.command_line import CommandParser

HEADS = ("fused", "naive")
#: Relative, of loss and gradient norm: sums over the whole vocabulary in two orders.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Memory:
    """One head's figures.

    Attributes:
      compiled_mb: temporaries and results of the compiled program, MiB.
      maxrss_mb: most resident memory of the process, MiB.
    """

    compiled_mb: float
    maxrss_mb: float
    loss: float
    grad_norm: float


def loss_function(head: str) -> Callable[..., jax.Array]:
    """Loss of (hidden [1, T, D], weight [V, D], tokens [1, T], token weights [1, T]) by this head."""

    def fused(hidden: jax.Array, weight: jax.Array, tokens: jax.Array, per_slot: jax.Array) -> jax.Array:
        predecessors = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] - 1
        loss, _ = fused_loss(
            hidden,
            weight,
            tokens,
            predecessors,
            predecessors >= 0,
            per_slot,
            lambda logprobs, entropy, weights: -jnp.sum(weights * logprobs),
            temperature=1.0,
            chunk_tokens=LearnerSettings.model_fields["logits_chunk_tokens"].default,
        )
        return loss

    def naive(hidden: jax.Array, weight: jax.Array, tokens: jax.Array, per_slot: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden[:, :-1], weight), axis=-1)
        chosen = jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(per_slot[:, 1:] * chosen)

    return {"fused": fused, "naive": naive}[head]


def run_head(head: str, *, tokens: int, vocab: int, hidden: int) -> Memory:
    """Measures in this process, which should be a fresh one.

    Raises:
      BenchmarkError: the compiled program needs more memory than the machine has left.
    """
    rng = np.random.default_rng(0)
    arguments = (
        jnp.asarray(rng.standard_normal((1, tokens, hidden), np.float32)),
        jnp.asarray(0.02 * rng.standard_normal((vocab, hidden), np.float32)),
        jnp.asarray(rng.integers(0, vocab, (1, tokens)), jnp.int32),
        jnp.asarray(rng.standard_normal((1, tokens), np.float32)),
    )
    compiled = jax.jit(jax.value_and_grad(loss_function(head), argnums=(0, 1))).lower(*arguments).compile()
    analysis: Any = compiled.memory_analysis()
    needed_mb = (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / 2**20
    if needed_mb > (available := _available_mb()):
        raise BenchmarkError(
            f"the {head} head needs {needed_mb:.0f} MiB, {available:.0f} are free: close other programs or leave the "
            f"head out of --cases"
        )
    loss, gradients = jax.block_until_ready(compiled(*arguments))
    # Not jnp.vdot of the whole weight: what follows must not need more memory than the program itself.
    norm = float(np.sqrt(sum(float(np.sum(np.square(np.asarray(g, np.float32)))) for g in gradients)))
    return Memory(compiled_mb=needed_mb, maxrss_mb=peak_rss_mb(), loss=float(loss), grad_norm=norm)


def _available_mb() -> float:
    return psutil.virtual_memory().available / 2**20


def measure(flags: Sequence[str] = ()) -> dict[str, Memory]:
    """Both heads, each in its own process.

    Raises:
      BenchmarkError: a process failed, or the two disagree.
    """
    heads = {}
    for head in HEADS:
        done = subprocess.run(
            [sys.executable, "-m", "tools.bench.learner.head", "--head", head, *flags],
            env=process_environment(),
            cwd=peers.REPOSITORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.splitlines()[-1:] or [f"killed by signal {-done.returncode}"]
            raise BenchmarkError(f"the {head} head ended with status {done.returncode}: {said[0]}")
        record: Mapping[str, float] = json.loads(done.stdout.splitlines()[-1])
        heads[head] = Memory(**{field.name: record[field.name] for field in fields(Memory)})
    check(heads["fused"], heads["naive"])
    return heads


def check(fused: Memory, naive: Memory) -> None:
    """Raises: BenchmarkError: loss or gradient norm differ."""
    for figure in ("loss", "grad_norm"):
        got, wanted = getattr(fused, figure), getattr(naive, figure)
        if not abs(got - wanted) <= _TOLERANCE * abs(wanted):
            raise BenchmarkError(f"head: {figure} of the fused head is {got:.8g}, of the naive one {wanted:.8g}")


def verdicts(heads: Mapping[str, Memory]) -> list[Verdict]:
    """Against the aim: by what the compiler reserves, and by resident memory of whole processes."""
    fused, naive = heads["fused"], heads["naive"]
    found = []
    for what, ours, theirs in (
        ("compiled memory", fused.compiled_mb, naive.compiled_mb),
        ("peak RSS", fused.maxrss_mb, naive.maxrss_mb),
    ):
        share = ours / theirs
        text = f"{share:.3f}x the naive head's {what} ({ours:.0f} of {theirs:.0f} MiB)"
        found.append(verdict("head", f"naive head, {what}", text, share, HEAD_AIM, at_most=True))
    return found


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", choices=HEADS, required=True)
    parser.add_argument("--tokens", type=positive, default=8192)
    parser.add_argument("--vocab", type=positive, default=151_669)
    parser.add_argument("--hidden", type=positive, default=128)
    given = parser.parse_args()
    try:
        memory = run_head(given.head, tokens=given.tokens, vocab=given.vocab, hidden=given.hidden)
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(asdict(memory)))


if __name__ == "__main__":
    main()
