"""Published throughput of engines and of whole loops, beside what the scale plan predicts for the same work."""

from __future__ import annotations

from dataclasses import dataclass

from learner_jax.contracts import parse_model_config
from tools.planning.scale import engine_tokens_per_s, plan_scale, sizes_of
from tools.planning.scale_inputs import MODELS, ScaleInputs

_TRT = "TensorRT-LLM 0.14, FP16"
_NEMO = "NeMo RL 0.4, GRPO, one step off, vLLM and Megatron"
_QWEN3_32B = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151_936,
    "hidden_size": 5120,
    "intermediate_size": 25_600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Published:
    """A published figure and ours; `unit` is tokens a second of an engine, or seconds of a loop's step."""

    source: str
    model: str
    gpus: int
    work: str
    unit: str
    published: float
    predicted: float

    @property
    def ratio(self) -> float:
        return self.predicted / self.published


#: (model, GPUs) -> tokens a second by (prompt, answer). perf-overview.md in the documentation of TensorRT-LLM 0.14.
_ENGINES: dict[tuple[str, int], dict[tuple[int, int], float]] = {
    ("Llama-3.1-8B", 1): {
        (128, 2048): 9150.7,
        (128, 4096): 5368.9,
        (500, 2000): 7498.3,
        (1000, 1000): 7054.5,
        (2048, 2048): 4159.7,
    },
    ("Llama-3.1-70B", 4): {
        (128, 2048): 4982.6,
        (128, 4096): 3083.9,
        (500, 2000): 3781.1,
        (1000, 1000): 3774.7,
        (2048, 2048): 2393.1,
    },
}
#: (model, GPUs, mean tokens of prompt and answer, seconds of a step). performance-summary.md of NeMo RL 0.4.
_LOOPS = (("Llama-3.1-8B", 16, 1129, 74.6), ("Qwen3-32B", 64, 3207, 215.0))


def against_published(inputs: ScaleInputs) -> list[Published]:
    """The plan's predictions for the work of published figures; all on H100 with 80 GB, bf16 or fp16."""
    return [*_engines(inputs), *_loops(inputs)]


def _engines(inputs: ScaleInputs) -> list[Published]:
    found = []
    engine = inputs.engine.model_copy(update={"max_num_seqs": 4096})
    for (name, gpus), figures in _ENGINES.items():
        sizes = sizes_of(parse_model_config(MODELS[name], origin=name))
        for (prompt, answer), published in figures.items():
            workload = inputs.workload.model_copy(
                update={"prompt_tokens": prompt, "answer_tokens": answer, "group_size": 1}
            )
            changed = inputs.model_copy(update={"workload": workload, "engine": engine})
            predicted = engine_tokens_per_s(sizes, changed, gpus)
            found.append(Published(_TRT, name, gpus, f"{prompt} + {answer}", "tokens/s", published, predicted))
    return found


def _loops(inputs: ScaleInputs) -> list[Published]:
    """2,048 answers a step, 32 to a prompt of about 150 tokens; log-probs of the policy and of a reference."""
    found = []
    for name, gpus, tokens, published in _LOOPS:
        work = {"groups": 64, "group_size": 32, "prompt_tokens": 150, "answer_tokens": tokens - 150, "max_staleness": 1}
        changed = inputs.model_copy(update={"workload": inputs.workload.model_copy(update=work)})
        model = parse_model_config(MODELS.get(name, _QWEN3_32B), origin=name)
        predicted = plan_scale(name, model, gpus, changed).step_s
        found.append(Published(_NEMO, name, gpus, f"2048 x {tokens}", "s a step", published, predicted))
    return found
