"""Tunix's GRPOLearner on the work of a job; runs in Tunix's environment, started by `sides.peer_launch`.

The same start weights, prompts as token ids, scores, optimizer and learning rate as Weir's; answers come from its own
sampler in the same process. Tunix divides rewards by the sample deviation of a group, Weir by the population's: that is
left as it is.

Not covered: models that are no Qwen3, and held-out evaluations.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.end_to_end.peer_common import Events, Job, Problems, cut, learning_rate_factor, read_job

#: Mean of each answer's mean, and the estimator of the KL that Weir and TRL call k3.
_REDUCTION, _KL = "sequence-mean-token-mean", "low_var_kl"
#: prompts that are sampled and trained on at once; the fastest of 8, 16, 32 and 64 on two cores
_MICRO_BATCH = 64
#: Steps beyond those that are timed: the learner is ended from outside.
_NEVER = 10**9


def main() -> None:
    logging.disable(logging.INFO)
    job = read_job()
    config = json.loads((Path(job["model"]) / "config.json").read_text())
    if config["architectures"] != ["Qwen3ForCausalLM"]:
        raise SystemExit(f"the side tunix starts from a Qwen3 alone, got {config['architectures']}: leave it out")
    if job["evaluate_every"]:
        raise SystemExit("the side tunix has no held-out evaluations: leave it out, or --target and --evaluate-every")
    events = Events(job["events"])
    train = Problems(job, "train", _decoder(job))
    cluster = _cluster(job, config, train)
    learner = _learner(job, cluster, train, events)
    size = job["groups_per_step"]
    learner.train([{"prompts": np.array(names)} for names in _batches(len(train), size)])
    events.write("ended")


def _batches(number: int, size: int) -> Iterator[list[str]]:
    for first in range(0, number - size + 1, size):
        yield [str(i) for i in range(first, first + size)]


def _decoder(job: Job) -> Callable[[Sequence[int]], str]:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(Path(job["model"]) / "tokenizer.json"))
    return lambda ids: str(backend.decode(list(ids), skip_special_tokens=True))


class _Ids:
    """A tokenizer whose text of a prompt is its number, and of an answer its token ids."""

    def __init__(self, job: Job, train: Problems) -> None:
        self._job, self._train = job, train

    def encode(self, text: str, **_: Any) -> list[int]:
        return self._train.prompts[int(text)]

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(str(int(i)) for i in ids)

    def bos_id(self) -> int:
        return 0  # none is put before a prompt

    def eos_id(self) -> int:
        return int(self._job["eos_ids"][0])

    def pad_id(self) -> int:
        return int(self._job["pad_id"])


def _cluster(job: Job, config: dict[str, Any], train: Problems) -> Any:
    import jax
    import optax
    from jax.sharding import Mesh
    from tunix.generate import utils
    from tunix.rl import rl_cluster
    from tunix.rl.rollout import base_rollout

    first_end = utils.np_find_first_eos_idx
    # 0.1.7 cuts the end token off what was sampled, so that it would not be trained on.
    utils.np_find_first_eos_idx = lambda ids, eos: min(first_end(ids, eos) + 1, len(ids))
    settings = job["optimizer"]
    rate, factor = settings["learning_rate"], learning_rate_factor(settings["warmup_steps"])
    warmup = max(settings["warmup_steps"], 1)
    schedule = optax.schedules.linear_schedule(rate * factor(0), rate, max(warmup - 1, 1))
    optimizer = optax.chain(
        optax.clip_by_global_norm(settings["max_grad_norm"]),
        optax.adamw(
            schedule,
            b1=settings["beta1"],
            b2=settings["beta2"],
            eps=settings["eps"],
            weight_decay=settings["weight_decay"],
        ),
    )
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    role = rl_cluster.Role
    micro = min(_MICRO_BATCH, job["groups_per_step"])
    room = -(-(job["max_prompt_tokens"] + job["max_tokens"] + 1) // 8) * 8
    return rl_cluster.RLCluster(
        actor=_model(config, job["model"]),
        reference=_model(config, job["model"]),
        tokenizer=_Ids(job, train),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={role.ACTOR: mesh, role.REFERENCE: mesh, role.ROLLOUT: mesh},
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optimizer,
                eval_every_n_steps=_NEVER,
                max_steps=len(train) // job["groups_per_step"],
                mini_batch_size=job["groups_per_step"],
                train_micro_batch_size=micro,
                rollout_micro_batch_size=micro,
                compute_logps_micro_batch_size=micro,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=job["max_tokens"],
                max_prompt_length=job["max_prompt_tokens"],
                kv_cache_size=room,
                temperature=job["temperature"],
                top_p=1.0,
                top_k=None,
                eos_tokens=job["eos_ids"],
            ),
        ),
    )


def _learner(job: Job, cluster: Any, train: Problems, events: Events) -> Any:
    import jax
    from flax import nnx
    from tunix.rl.grpo import grpo_learner

    last: dict[str, Any] = {}

    def reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        answers = [cut([int(i) for i in text.split()], job["eos_ids"]) for text in completions]
        scores = [train.score(int(p), answer) for p, answer in zip(prompts, answers, strict=True)]
        last.update(reward=sum(scores) / len(scores), num_tokens=sum(map(len, answers)))
        return scores

    algorithm = grpo_learner.GRPOConfig(
        num_generations=job["group_size"],
        num_iterations=1,
        beta=job["kl"],
        epsilon=job["clip"],
        kl_loss_mode=_KL,
        loss_agg_mode=_REDUCTION,
    )
    learner = grpo_learner.GRPOLearner(rl_cluster=cluster, reward_fns=[reward], algo_config=algorithm)
    update, number = cluster.update_actor, 0

    def stepped(examples: Any, *rest: Any, **more: Any) -> Any:
        nonlocal number
        if number == 0:
            _keep_first(job, cluster, examples, events)
        result = update(examples, *rest, **more)
        jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
        number += 1
        events.write("step", step=number, **last)
        return result

    cluster.update_actor = stepped
    return learner


def _keep_first(job: Job, cluster: Any, examples: Any, events: Events) -> None:
    """Keeps the first step's batch, loss and gradient norm, which Weir's learner then computes too."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    started, parts = time.time(), list(examples)
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")
    arrays = {name: np.concatenate([np.asarray(getattr(part, name)) for part in parts]) for name in names}
    np.savez(
        job["first_batches"][0],
        **{name: array.astype(np.int32) if "_" in name else array for name, array in arrays.items()},
    )
    trainer = cluster.actor_trainer

    def loss_of(model: Any, part: Any) -> Any:
        return trainer.loss_fn(model, **trainer.gen_model_input_fn(part))[0]

    loss, norm = 0.0, None
    for part in parts:
        value, gradient = nnx.value_and_grad(loss_of)(trainer.model, part)
        loss += float(value) / len(parts)
        norm = gradient if norm is None else jax.tree.map(jnp.add, norm, gradient)
    mean = jax.tree.map(lambda leaf: leaf / len(parts), norm)
    size = float(optax.global_norm(mean))
    events.write("first_step", loss=loss, grad_norm=size, paused_s=time.time() - started)


def _model(config: dict[str, Any], folder: str) -> Any:
    import jax.numpy as jnp
    from flax import nnx
    from safetensors.numpy import load_file
    from tunix.models.qwen3 import model as qwen3

    width, heads, kv_heads, head = (
        config[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    qwen3.apply_rope.__defaults__ = (int(theta),)  # 0.1.7 does not look at its own configuration's rope_theta
    shape = qwen3.ModelConfig(
        num_layers=config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        embed_dim=width,
        hidden_dim=config["intermediate_size"],
        num_heads=heads,
        head_dim=head,
        num_kv_heads=kv_heads,
        rope_theta=int(theta),
        norm_eps=config["rms_norm_eps"],
        use_tied_embedding=config["tie_word_embeddings"],
        remat_config=qwen3.RematConfig.NONE,
    )
    weights = load_file(str(Path(folder) / "model.safetensors"))
    model = qwen3.Qwen3(shape, rngs=nnx.Rngs(0))

    def put(parameter: Any, name: str, to: Callable[[np.ndarray], np.ndarray]) -> None:
        parameter.set_value(jnp.asarray(to(weights[name]), jnp.float32))

    def same(array: np.ndarray) -> np.ndarray:
        return array

    def turned(array: np.ndarray) -> np.ndarray:
        return array.T

    put(model.embedder.input_embedding, "model.embed_tokens.weight", same)
    put(model.final_norm.w, "model.norm.weight", same)
    if not shape.use_tied_embedding:
        put(model.lm_head.w, "lm_head.weight", turned)
    for number, layer in enumerate(model.layers):
        start, attention, mlp = f"model.layers.{number}.", layer.attn, layer.mlp
        put(attention.q_proj.w, f"{start}self_attn.q_proj.weight", lambda x: x.T.reshape(width, heads, head))
        put(attention.k_proj.w, f"{start}self_attn.k_proj.weight", lambda x: x.T.reshape(width, kv_heads, head))
        put(attention.v_proj.w, f"{start}self_attn.v_proj.weight", lambda x: x.T.reshape(width, kv_heads, head))
        put(attention.o_proj.w, f"{start}self_attn.o_proj.weight", lambda x: x.T.reshape(heads, head, width))
        put(attention.q_norm.w, f"{start}self_attn.q_norm.weight", same)
        put(attention.k_norm.w, f"{start}self_attn.k_norm.weight", same)
        put(layer.input_layernorm.w, f"{start}input_layernorm.weight", same)
        put(layer.post_attention_layernorm.w, f"{start}post_attention_layernorm.weight", same)
        for name in ("gate_proj", "up_proj", "down_proj"):
            put(getattr(mlp, name).kernel, f"{start}mlp.{name}.weight", turned)
    return model


if __name__ == "__main__":
    main()
