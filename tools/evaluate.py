"""Measures skill on held-out problems through vLLM, on the weights of a Hugging Face folder.

python -m tools.evaluate --config runs/demo/config.toml --model runs/demo/final_model
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tools.assembly import clear_errors, config_arguments, preflight, read_arguments
from tools.command_line import command_parser
from tools.launch import evaluate_folder


def main() -> None:
    parser = command_parser("evaluate", __doc__)
    config_arguments(parser)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder, e.g. from tools.convert")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, samples included")
    with clear_errors():
        arguments, config, paths = read_arguments(parser)
        preflight("evaluate", config, paths, model_dir=arguments.model)
        result = asyncio.run(evaluate_folder(config, paths, arguments.model))
    if arguments.json:
        print(json.dumps(result.as_fields(), indent=1))
        return
    for sample in result.samples:
        score = f"no verdict: {sample.verdict}" if sample.score is None else f"score {sample.score:g}"
        print(f"{sample.prompt!r} -> {sample.answer!r} (expected {sample.expected!r}, {score})")
    print(f"accuracy {result.accuracy:.1%}, mean score {result.mean_score:.3f} over {result.num_problems} problems")
    for note in result.notes:
        print(f"note: {note}")


if __name__ == "__main__":
    main()
