"""Measures a run's last checkpoint, as a process of its own where the job's program has no vLLM on its host.

python -m tools.launch.last_evaluation --config RUN/config.toml
"""

from __future__ import annotations

import asyncio

from tools.assembly import clear_errors, config_arguments, metrics_log, read_arguments
from tools.command_line import CommandParser
from tools.launch.evaluation import evaluate_folder


def main() -> None:
    parser = CommandParser(description=__doc__)
    config_arguments(parser)
    with clear_errors():
        _, config, paths = read_arguments(parser, joins=True)
        result = asyncio.run(evaluate_folder(config, paths, paths.final_model))
        metrics_log(config, paths, "train").write("evaluation", which="after", **result.as_fields())


if __name__ == "__main__":
    main()
