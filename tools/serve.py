"""Runs the serving fleet: vLLM replicas that follow the run's weight store.

python -m tools.serve --config runs/demo/config.toml
"""

from __future__ import annotations

import argparse
import asyncio

from serving_bridge.fleet import Fleet
from tools import wiring


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wiring.config_arguments(parser)
    with wiring.clear_errors():
        _, config, paths = wiring.read_arguments(parser)
        model_dir = wiring.base_model_dir(config, paths)
        wiring.build_encoder(config, model_dir)  # a folder that can't be served is refused before vLLM is started
        fleet = Fleet(
            config.serving,
            model_dir=model_dir,
            store=wiring.build_store(config, paths),
            registry=wiring.build_registry(paths),
            log_dir=paths.logs,
            keep_versions=config.store.keep_versions,
            log=wiring.metrics_writer(paths, "fleet"),
            should_stop=wiring.StopRequest().install(),
        )
        asyncio.run(fleet.run())


if __name__ == "__main__":
    main()
