"""Converts between Orbax checkpoints and Hugging Face folders.

python -m tools.convert to-hf --checkpoint runs/demo/checkpoints --model runs/demo/start_model --out DIR
python -m tools.convert from-hf --model DIR --out DIR
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from serving_bridge.convert import from_hf, to_hf
from tools import wiring


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    forward = commands.add_parser("to-hf", help="Orbax checkpoint -> safetensors folder")
    forward.add_argument("--checkpoint", type=Path, required=True, help="one checkpoint, or a folder: its newest")
    forward.add_argument("--model", type=Path, required=True, help="folder to take config.json and tokenizer from")
    forward.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    backward = commands.add_parser("from-hf", help="safetensors folder -> Orbax checkpoint")
    backward.add_argument("--model", type=Path, required=True)
    for command in (forward, backward):
        command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of a file that a run's checkpoints don't need
    with wiring.clear_errors():
        if arguments.command == "to-hf":
            to_hf(arguments.checkpoint, model_dir=arguments.model, out=arguments.out, dtype=arguments.dtype)
        else:
            from_hf(arguments.model, out=arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
