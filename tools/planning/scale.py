"""What bounds the whole loop on a number of GPUs: how they are divided, what a step takes, and how busy everything is.

GPUs sample or train, and the split that makes a step shortest is taken. Sampling and training overlap, so a step takes
the longer of the two. Everything else is one process, link or bound that a step's work has to pass: its load is the
seconds it needs for one step over the seconds of a step. A load above 1 sets the pace. Loads that take GPU time are
shares of all GPUs' time.

Not covered: mixture-of-experts models, pipeline parallelism, tool calls and user traffic, failures, and how answers'
lengths are distributed beyond their mean and the longest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from learner_jax.contracts import ModelConfig, hf_shapes
from tools.planning.scale_inputs import ScaleInputs

_BF16 = 2


@dataclass(frozen=True)
class Sizes:
    """A model in numbers.

    Attributes:
      parameters: all of them.
      active: those that a token is multiplied with: without the embedding, unless it is the head too.
      kv_bytes: KV cache of one token, bf16.
    """

    parameters: float
    active: float
    kv_bytes: float

    @property
    def weights(self) -> float:
        """Bytes in bf16."""
        return _BF16 * self.parameters


@dataclass(frozen=True)
class Load:
    """How much of a step one thing takes: a share of GPU time, or seconds over the seconds of a step.

    Attributes:
      work: whether it is what the loop is for, so that less of it means less learning.
      paces: whether a share above 1 makes every step longer. Otherwise answers get too old.
    """

    name: str
    share: float
    removed_by: str
    work: bool = False
    paces: bool = True


@dataclass(frozen=True)
class Plan:
    """One model on one number of GPUs.

    Attributes:
      learner_gpus: 0 where the model doesn't fit.
      per_replica: answers in flight on a replica.
      token_s: seconds from one token of an answer to its next.
      step_s: seconds of a step, if nothing but GPUs sets the pace.
      in_time: tokens of the longest answer that is not too old when its step is taken.
      loads: the largest first.
    """

    name: str
    num_gpus: int
    learner_gpus: int
    replicas: int
    replica_gpus: int
    per_replica: float
    token_s: float
    step_s: float
    in_time: float
    loads: tuple[Load, ...]

    @property
    def fits(self) -> bool:
        return self.learner_gpus > 0

    @property
    def paced_step_s(self) -> float:
        """Seconds of a step with everything that sets the pace."""
        return self.step_s * max(1.0, *(load.share for load in self.loads if load.paces))

    @property
    def limits(self) -> tuple[Load, ...]:
        """The loads that are not the work itself, the largest first."""
        return tuple(load for load in self.loads if not load.work)


def sizes_of(model: ModelConfig) -> Sizes:
    parameters = sum(math.prod(shape) for shape in hf_shapes(model).values())
    embedding = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    kv_bytes = 2 * model.num_layers * model.num_kv_heads * model.head_dim * _BF16
    return Sizes(parameters, parameters - embedding, kv_bytes)


def replica_gpus(sizes: Sizes, inputs: ScaleInputs) -> int:
    """GPUs of a replica: the fewest, a power of two, that leave half of the memory to the KV cache."""
    usable = inputs.devices.memory_bytes * inputs.engine.memory_share
    return 2 ** max(0, math.ceil(math.log2(2 * sizes.weights / usable)))


def fewest_learner_gpus(sizes: Sizes, inputs: ScaleInputs) -> int:
    """GPUs whose memory holds the train state, with a tenth of it to spare."""
    needed = sizes.parameters * inputs.learner.bytes_per_parameter
    return math.ceil(needed / (0.9 * inputs.devices.memory_bytes))


@dataclass(frozen=True)
class Decoding:
    """A replica with a number of answers in flight."""

    answers: float
    token_s: float
    tokens_per_s: float


def decoding(sizes: Sizes, inputs: ScaleInputs, gpus: int, answers: float) -> Decoding:
    """An engine step reads all weights and the KV cache of every answer, and multiplies a token of each.

    Half of an answer and its prompt lie in the cache on average. Seconds are the sum of reading, multiplying and a
    constant, over the share that several GPUs reach.
    """
    workload, devices, engine = inputs.workload, inputs.devices, inputs.engine
    context = workload.prompt_tokens + workload.answer_tokens / 2
    read = sizes.weights + answers * context * sizes.kv_bytes
    multiplied = 2 * answers * sizes.active
    seconds = engine.step_s
    seconds += read / (gpus * devices.bandwidth * engine.bandwidth_share)
    seconds += multiplied / (gpus * devices.flops * engine.flops_share)
    seconds /= engine.parallel_share if gpus > 1 else 1.0
    return Decoding(answers, seconds, answers / seconds)


def engine_tokens_per_s(sizes: Sizes, inputs: ScaleInputs, gpus: int) -> float:
    """Tokens a second of answers from a replica that always has all the answers that it holds, prompts included."""
    workload = inputs.workload
    at = decoding(sizes, inputs, gpus, most_answers(sizes, inputs, gpus))
    prompts = _prefill_s(sizes, inputs, gpus) * workload.prompt_tokens / workload.group_size
    return 1 / (1 / at.tokens_per_s + prompts / workload.answer_tokens)


def _prefill_s(sizes: Sizes, inputs: ScaleInputs, gpus: int) -> float:
    """Seconds of one token of a prompt."""
    share = inputs.engine.parallel_share if gpus > 1 else 1.0
    return 2 * sizes.active / (gpus * inputs.devices.flops * inputs.engine.flops_share * share)


def most_answers(sizes: Sizes, inputs: ScaleInputs, gpus: int) -> float:
    """Answers that a replica holds at a time: `serving.max_num_seqs`, or what its KV cache has room for."""
    workload = inputs.workload
    cache = gpus * inputs.devices.memory_bytes * inputs.engine.memory_share - sizes.weights
    context = workload.prompt_tokens + workload.answer_tokens / 2
    return min(inputs.engine.max_num_seqs, cache / (context * sizes.kv_bytes))


@dataclass(frozen=True)
class _Sampling:
    """Seconds of a step on all samplers, by what they are spent on."""

    full: float  # decoding, as fast as replicas with all the answers that they hold
    thin: float  # what decoding takes longer, since fewer answers may be in flight
    prompts: float
    again: float  # KV caches computed again after new weights
    pauses: float
    at: Decoding

    @property
    def seconds(self) -> float:
        return self.full + self.thin + self.prompts + self.again + self.pauses


def _sampling(sizes: Sizes, inputs: ScaleInputs, replicas: int, gpus: int) -> _Sampling:
    workload = inputs.workload
    answers = workload.groups * workload.group_size
    most = most_answers(sizes, inputs, gpus)
    # The gate lets `max_staleness` batches be under way beside the one that is trained on.
    in_flight = min(most, workload.max_staleness * answers / replicas)
    at, best = (decoding(sizes, inputs, gpus, number) for number in (in_flight, most))
    tokens = answers * workload.answer_tokens
    full = tokens / (replicas * best.tokens_per_s)
    prefill = _prefill_s(sizes, inputs, gpus)
    context = workload.prompt_tokens + workload.answer_tokens / 2
    return _Sampling(
        full=full,
        thin=tokens / (replicas * at.tokens_per_s) - full,
        prompts=workload.groups * workload.prompt_tokens * prefill / replicas,
        again=workload.versions_per_step * in_flight * context * prefill,
        pauses=workload.versions_per_step * inputs.rates.pause_s,
        at=at,
    )


@dataclass(frozen=True)
class _Training:
    """Seconds of a step on all of the learner's GPUs, by what they are spent on."""

    step: float
    reference: float
    gathered: float  # weights brought to one host, in the thread that trains

    @property
    def seconds(self) -> float:
        return self.step + self.reference + self.gathered


def _training(sizes: Sizes, inputs: ScaleInputs, gpus: int) -> _Training:
    workload, devices = inputs.workload, inputs.devices
    answers = workload.groups * workload.group_size
    tokens = answers * workload.answer_tokens + workload.groups * workload.prompt_tokens
    forward = 2 * sizes.active * tokens / (gpus * devices.flops * inputs.learner.flops_share)
    hosts = gpus > devices.gpus_per_host
    gathered = workload.versions_per_step * sizes.weights / devices.host_link if hosts else 0.0
    return _Training(3 * forward, forward if workload.reference else 0.0, gathered)


def plan_scale(name: str, model: ModelConfig, num_gpus: int, inputs: ScaleInputs) -> Plan:
    """The split of `num_gpus` that makes a step shortest, and the loads under it."""
    sizes = sizes_of(model)
    each, fewest = replica_gpus(sizes, inputs), fewest_learner_gpus(sizes, inputs)
    multiple = 1 if num_gpus <= inputs.devices.gpus_per_host else inputs.devices.gpus_per_host
    candidates = [gpus for gpus in range(multiple, num_gpus - each + 1, multiple) if gpus >= fewest]
    if not candidates:
        return Plan(name, num_gpus, 0, 0, each, 0.0, 0.0, math.inf, 0.0, ())

    def seconds(learner_gpus: int) -> float:
        sampling = _sampling(sizes, inputs, (num_gpus - learner_gpus) // each, each)
        return max(sampling.seconds, _training(sizes, inputs, learner_gpus).seconds)

    learner_gpus = min(candidates, key=seconds)
    replicas = (num_gpus - learner_gpus) // each
    sampling, training = _sampling(sizes, inputs, replicas, each), _training(sizes, inputs, learner_gpus)
    step_s = max(sampling.seconds, training.seconds)
    loads = [
        *_gpu_loads(sampling, training, replicas * each, learner_gpus, num_gpus * step_s),
        *_other_loads(sizes, inputs, sampling, replicas, learner_gpus, num_gpus, step_s),
    ]
    loads.sort(key=lambda load: -load.share)
    return Plan(
        name=name,
        num_gpus=num_gpus,
        learner_gpus=learner_gpus,
        replicas=replicas,
        replica_gpus=each,
        per_replica=sampling.at.answers,
        token_s=sampling.at.token_s,
        step_s=step_s,
        in_time=inputs.workload.max_staleness * step_s / sampling.at.token_s,
        loads=tuple(loads),
    )


def _gpu_loads(
    sampling: _Sampling, training: _Training, samplers: int, trainers: int, all_seconds: float
) -> list[Load]:
    """Shares of `all_seconds`, those of all GPUs in a step."""
    return [
        Load("sampling", samplers * sampling.full / all_seconds, "fp8, speculative decoding, more GPUs", work=True),
        Load("training", trainers * training.step / all_seconds, "a better kernel, more GPUs", work=True),
        Load("prompts", samplers * sampling.prompts / all_seconds, "shorter prompts", work=True),
        Load(
            "too few answers in flight",
            samplers * sampling.thin / all_seconds,
            "a larger max_staleness or batch; more learner GPUs in place of samplers",
        ),
        Load(
            "KV caches computed again",
            samplers * sampling.again / all_seconds,
            "keeping old caches, or taking every n-th version",
        ),
        Load("pauses", samplers * sampling.pauses / all_seconds, "a shorter probe, or taking every n-th version"),
        Load(
            "reference log-probs",
            trainers * training.reference / all_seconds,
            "KL coefficient 0, or the reference on the samplers' idle time",
        ),
        Load(
            "gathering weights",
            trainers * training.gathered / all_seconds,
            "each host comparing and encoding its own shards",
        ),
    ]


def _other_loads(
    sizes: Sizes, inputs: ScaleInputs, sampling: _Sampling, replicas: int, trainers: int, num_gpus: int, step_s: float
) -> list[Load]:
    """What is not a GPU: seconds that a step's work needs of it, over the seconds of a step."""
    workload, devices, rates = inputs.workload, inputs.devices, inputs.rates
    answers = workload.groups * workload.group_size
    tokens = answers * workload.answer_tokens
    versions = workload.versions_per_step
    one_machine = num_gpus <= devices.gpus_per_host
    gathers_s = 8 * sizes.parameters / devices.network  # bf16 weights twice, fp32 gradients once
    compute_s = 6 * sizes.active * inputs.learner.microbatch_tokens / (devices.flops * inputs.learner.flops_share)
    return [
        Load(
            "longest answer against max_staleness",
            workload.longest_answer * sampling.at.token_s / workload.max_staleness / step_s,
            "a larger max_staleness with decoupled PPO; shorter answers",
            paces=False,
        ),
        Load(
            "API server of a replica",
            (tokens * rates.server_token_s + answers * rates.server_answer_s) / replicas / step_s,
            "more API servers for each engine",
        ),
        Load(
            "rollout workers",
            (tokens * rates.rollout_token_s + answers * rates.rollout_answer_s) / rates.rollout_workers / step_s,
            "more of them",
        ),
        Load(
            "scoring",
            answers * workload.verdict_s / (rates.rollout_workers * rates.score_processes) / step_s,
            "more task.score_processes, or workers",
        ),
        Load(
            "queue, putting in",
            answers * (rates.sqlite_put_s if one_machine else rates.postgres_put_s) / step_s,
            "a faster disk, larger puts, several queues",
        ),
        Load(
            "queue, taking out",
            answers * rates.take_s / step_s,
            "every host of the learner taking its own share",
        ),
        Load(
            "publishing: compare, encode, hash",
            versions * sizes.weights / rates.encode / step_s,
            "several threads; each host its own shards",
        ),
        Load(
            "staging at a replica",
            versions * sizes.weights / rates.stage / step_s,
            "several threads; each worker its own part",
            paces=False,
        ),
        Load(
            "weight store",
            versions * replicas * sizes.weights / workload.update_divisor / devices.store / step_s,
            "replicas that hand updates on",
            paces=False,
        ),
        Load(
            "parameters between the learner's hosts",
            gathers_s / compute_s if trainers > devices.gpus_per_host else 0.0,
            "more tokens in a microbatch; gathers behind computation",
        ),
    ]
