"""Token ids by the package `renderers`: run by a Python that has it, apart from Weir's own environment.

Reads {"tokenizer": path, "retention": name, "cases": [...]} from standard input. Writes one list of ids for each case,
null where the package gives none. Imports nothing of Weir.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from typing import Any


def main() -> None:
    asked = json.load(sys.stdin)
    transformers, renderers = (importlib.import_module(name) for name in ("transformers", "renderers"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=asked["tokenizer"], eos_token="<|im_end|>")
    retention = {"thinking_retention": asked["retention"]} if asked["retention"] else {}
    renderer = renderers.create_renderer(tokenizer, renderers.Qwen3RendererConfig(**retention))
    ids = [_ids(renderer, case) for case in asked["cases"]]
    json.dump({"version": importlib.metadata.version("renderers"), "ids": ids}, sys.stdout)


def _ids(renderer: Any, case: Mapping[str, Any]) -> list[int] | None:
    messages = [{"role": "user", "content": case["text"]}]
    if not case["prompt"]:
        return list(renderer.render_ids(messages, add_generation_prompt=True))
    found = renderer.bridge_to_next_turn(case["prompt"], case["answer"], messages)
    return None if found is None else list(found.token_ids)


if __name__ == "__main__":
    main()
