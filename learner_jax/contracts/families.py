"""Model families: the keys of each in config.json, its tensors as rows, and what computes it; free of JAX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from learner_jax.contracts.hf_keys import LLAMA_KEYS, QWEN2_KEYS, QWEN3_KEYS, Key
from learner_jax.runtime import WeirError

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
#: Name of a dimension -> logical axis that it is sharded by.
DIM_AXES: Mapping[str, str] = {
    "vocab": "vocab",
    "embed": "embed",
    "heads": "heads",
    "kv_heads": "kv_heads",
    "mlp": "mlp",
    "hidden_norm": "norm",
    "head_norm": "norm",
}
_STACKED = "layers."
_LAYER = "{layer}"


class ModelFamilyError(WeirError, ValueError):
    """A model family is not registered as it should be; says which field, what was expected and what came."""

    can_heal = False


@dataclass(frozen=True)
class Row:
    """One parameter of a family.

    Attributes:
      path: dotted path in our parameter tree; below `layers.` it repeats per layer.
      hf_name: Hugging Face name, with `{layer}` where it repeats.
      dims: of one layer's tensor, [out, in]. Names of `DIM_AXES`: vocab, embed (hidden size, sharded), heads (query
        heads x head size), kv_heads, mlp (intermediate size), hidden_norm and head_norm (hidden and head size, on
        every device whole).
      when: key of config.json that must be true for the row to exist; empty: it always does.
      unless: key that must be false.
    """

    path: str
    hf_name: str
    dims: tuple[str, ...]
    when: str = ""
    unless: str = ""

    @property
    def stacked(self) -> bool:
        return self.path.startswith(_STACKED)


def layer_row(path: str, hf_name: str, *dims: str, when: str = "") -> Row:
    """A row that repeats per layer: `path` below `layers.`, `hf_name` below `model.layers.{layer}.`."""
    return Row(f"{_STACKED}{path}", f"model.layers.{_LAYER}.{hf_name}", dims, when)


@dataclass(frozen=True)
class ModelFamily:
    """A kind of decoder. One from outside is named by `model.family = "package.module:NAME"`.

    Attributes:
      name: for people, in messages.
      architecture: `architectures` of config.json, by which vLLM chooses its model.
      model_type: `model_type` of config.json, by which transformers chooses its own.
      keys: rows of config.json; of two with one name the later holds.
      rows: parameters; `with_rows` adds to those of another family.
      head_sizes: what must hold of a head's size: "free"; "divides", hidden_size is a multiple of the heads;
        "shared", head_dim is hidden_size over the heads.
      decoder: "package.module:NAME" of a class with the interface of `learner_jax.models.Decoder`; empty: that class.
        It adds each bias and each norm of queries and keys that the rows have.
    """

    name: str
    architecture: str
    model_type: str
    keys: tuple[Key, ...]
    rows: tuple[Row, ...]
    head_sizes: Literal["free", "divides", "shared"] = "free"
    decoder: str = ""

    def __post_init__(self) -> None:
        for wrong, hint in _faults(self):
            raise ModelFamilyError(f"model family {self.name!r}: {wrong}, {hint}")

    @property
    def read_keys(self) -> tuple[Key, ...]:
        """The keys that the decoder computes with."""
        return tuple(key for key in self.key_table.values() if key.read)

    @property
    def key_table(self) -> dict[str, Key]:
        return {key.name: key for key in self.keys}


def _faults(family: ModelFamily) -> Iterable[tuple[str, str]]:
    """(what is wrong, what is expected) of a registration."""
    for attribute in ("path", "hf_name"):
        names = [getattr(row, attribute) for row in family.rows]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield f"{attribute} {twice[0]!r} stands in two rows", "expected one"
    known = family.key_table
    for row in family.rows:
        if (_LAYER in row.hf_name) != row.stacked:
            yield f"row {row.path} is called {row.hf_name!r}", f"expected {_LAYER} exactly where path is below layers."
        for dim in row.dims:
            if dim not in DIM_AXES:
                yield f"row {row.path} has dimension {dim!r}", f"expected one of {', '.join(DIM_AXES)}"
        for key in filter(None, (row.when, row.unless)):
            if key not in known or not known[key].read:
                yield f"row {row.path} depends on {key!r}", "expected a key with read=True"


def with_rows(rows: tuple[Row, ...], *added: Row) -> tuple[Row, ...]:
    """`rows` with more of them, each behind the last one of its module: a bias behind its weight."""
    table = list(rows)
    for row in added:
        shared = [_shared_parts(row.path, other.path) for other in table]
        most = max(shared, default=0)
        last = max((index for index, count in enumerate(shared) if count == most), default=-1)
        table.insert(last + 1, row)
    return tuple(table)


def _shared_parts(path: str, other: str) -> int:
    """How many leading parts two dotted paths have in common."""
    pairs = list(zip(path.split("."), other.split("."), strict=False))
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _bias_rows(dims: Mapping[str, str], *, when: str = "") -> tuple[Row, ...]:
    """Biases of modules of a layer; `dims` has each module's output by its path."""
    return tuple(
        layer_row(f"{path}.bias", f"{path.replace('attention.', 'self_attn.')}.bias", dim, when=when)
        for path, dim in dims.items()
    )


#: A pre-norm decoder with grouped-query attention and SwiGLU, without biases.
DENSE_ROWS = (
    Row("embed.weight", EMBED, ("vocab", "embed")),
    layer_row("input_norm.weight", "input_layernorm.weight", "hidden_norm"),
    layer_row("attention.q_proj.weight", "self_attn.q_proj.weight", "heads", "embed"),
    layer_row("attention.k_proj.weight", "self_attn.k_proj.weight", "kv_heads", "embed"),
    layer_row("attention.v_proj.weight", "self_attn.v_proj.weight", "kv_heads", "embed"),
    layer_row("attention.o_proj.weight", "self_attn.o_proj.weight", "embed", "heads"),
    layer_row("post_norm.weight", "post_attention_layernorm.weight", "hidden_norm"),
    layer_row("mlp.gate_proj.weight", "mlp.gate_proj.weight", "mlp", "embed"),
    layer_row("mlp.up_proj.weight", "mlp.up_proj.weight", "mlp", "embed"),
    layer_row("mlp.down_proj.weight", "mlp.down_proj.weight", "embed", "mlp"),
    Row("norm.weight", "model.norm.weight", ("hidden_norm",)),
    Row("lm_head.weight", HEAD, ("vocab", "embed"), unless="tie_word_embeddings"),
)
_QKV = {"attention.q_proj": "heads", "attention.k_proj": "kv_heads", "attention.v_proj": "kv_heads"}
_MLP = {"mlp.gate_proj": "mlp", "mlp.up_proj": "mlp", "mlp.down_proj": "hidden_norm"}

#: Norms of queries and keys, head by head.
QK_NORM_ROWS = (
    layer_row("attention.q_norm.weight", "self_attn.q_norm.weight", "head_norm"),
    layer_row("attention.k_norm.weight", "self_attn.k_norm.weight", "head_norm"),
)

LLAMA = ModelFamily(
    name="llama",
    architecture="LlamaForCausalLM",
    model_type="llama",
    keys=LLAMA_KEYS,
    rows=with_rows(
        DENSE_ROWS,
        *_bias_rows({**_QKV, "attention.o_proj": "hidden_norm"}, when="attention_bias"),
        *_bias_rows(_MLP, when="mlp_bias"),
    ),
    head_sizes="divides",
)
QWEN2 = ModelFamily(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    keys=QWEN2_KEYS,
    rows=with_rows(DENSE_ROWS, *_bias_rows(_QKV)),
    head_sizes="shared",
)
QWEN3 = ModelFamily(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    keys=QWEN3_KEYS,
    rows=with_rows(DENSE_ROWS, *QK_NORM_ROWS),
)
BUILT_IN = (LLAMA, QWEN2, QWEN3)
