"""A run whose environment has tools: every prompt that the run makes shows them."""

from __future__ import annotations

import json
from pathlib import Path

from configs.load import load_config
from rewards.contracts import Problem
from tests.conftest import REPOSITORY
from tests.support.qwen_tokenizer import qwen_folder as qwen_folder
from tests.support.tool_templates import HERMES
from tests.support.user_folder import working_in
from tools.assembly import build_encoder

MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "tie_word_embeddings": True,
}


def test_prompts_of_a_run_show_the_tools_of_its_environment(qwen_folder: Path, tmp_path: Path) -> None:
    (qwen_folder / "config.json").write_text(json.dumps(MODEL))
    (tmp_path / "my_shop.py").write_text(
        "class Shop:\n    tools = ('price',)\n    def reset(self, row): return 0\n"
        "    def step(self, state, answer): return 0, None, 0\n    def price(self, state, item: str): return 3\n"
    )
    built_in = ["task.environment=tools", 'task.episode.tools=["calculator"]', "task.turns=3"]
    own = ["task.environment=my_shop:Shop", "task.turns=3"]
    (qwen_folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": HERMES}))
    with working_in(tmp_path):
        for chosen, names in ((built_in, ["calculator"]), (own, ["price"])):
            overrides = ["task.chat=true", "learner.sequence_length=60", *chosen]
            encoder, _ = build_encoder(load_config(REPOSITORY / "configs/demo.toml", overrides), qwen_folder)
            tokens = encoder.tokens(Problem(0, "7+5=", "12", {}))
            shown = encoder.tokenizer.backend.decode(tokens, skip_special_tokens=False)
            assert [name for name in ("calculator", "price") if f'"name": "{name}"' in shown] == names
