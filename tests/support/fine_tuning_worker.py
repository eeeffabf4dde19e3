"""One process of supervised training on several hosts: python -m tests.support.fine_tuning_worker JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from learner_jax.batches import ExampleStream
from learner_jax.checkpoints import Checkpoints, Position
from learner_jax.contracts import parse_model_config
from learner_jax.hosts import Hosts, connect, ends_at_once
from learner_jax.settings import SupervisedSettings
from learner_jax.settings.learner import HostsSettings, LearnerSettings
from learner_jax.training import Engine, fine_tune, fine_tuning_objective
from tests.support.host_worker import let_followers_cache, random_parameters
from tools.assembly import clear_errors


def data(loss: str) -> list[Any]:
    """Answers that repeat the prompt's token, of two lengths; of pairs, the other answer is another token."""
    if loss == "dpo":
        mask = [False, False, True, True]
        return [(([1, t, t, 2], mask), ([1, t, t + 1, 2], mask)) for t in range(4, 20)]
    mask = [False, False, True, True, True]
    return [([1, t, t, t, 2][: 4 + t % 2], mask[: 4 + t % 2]) for t in range(4, 20)]


def train(spec: dict[str, Any], hosts: Hosts) -> None:
    """From the newest checkpoint to the end, or until one host is asked to stop."""
    asked = SupervisedSettings(**spec["supervised"])
    config = parse_model_config(spec["model"], origin="test")
    settings = LearnerSettings.model_validate(spec["settings"])
    engine = Engine(settings, config, objective=fine_tuning_objective(asked), temperature=1.0, hosts=hosts)
    directory = Path(spec["directory"])
    checkpoints = Checkpoints(directory / "checkpoints", keep=2)
    start = engine.placed(random_parameters(config))
    state, first = engine.init_state(start, seed=0), 0
    if checkpoints.latest_step() is not None:
        state, position, _ = checkpoints.restore(state)
        first = position.completed_steps
    told: list[dict[str, Any]] = []
    host, steps = spec.get("stop_at") or (-1, 0)
    with hosts.telling():
        fine_tune(
            engine,
            state,
            asked,
            start=start,
            examples=ExampleStream(data(asked.loss), batch_size=asked.batch_size, seed=3).since(first),
            first_step=first,
            save=lambda state, step: checkpoints.save(state, Position(step, -1, 0, ())),
            log=lambda event, **fields: told.append(fields),
            should_stop=lambda: hosts.index == host and len(told) >= steps,
            hosts=hosts,
        )
    checkpoints.close()
    with (directory / f"told-{hosts.index}.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": fields["step"], "loss": fields["loss"]}) + "\n" for fields in told)


def main() -> None:
    let_followers_cache()
    spec = json.loads(sys.argv[1])
    settings = HostsSettings(**spec["settings"].get("hosts", {}))
    with ends_at_once(), clear_errors(), connect(settings, timeout_s=60.0, facts={}) as hosts:
        train(spec, hosts)


if __name__ == "__main__":
    main()
