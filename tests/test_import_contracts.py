"""The import contracts of pyproject.toml hold, and each of them breaks when an import runs the wrong way."""

from __future__ import annotations

import copy
import tomllib
from typing import Any

import grimp
import pytest
from importlinter import Contract, ContractCheck
from importlinter.configuration import configure
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.layers import LayersContract

from tests.conftest import REPOSITORY
from tests.support.rooms import RoomsContract

SETTINGS: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]
KINDS: dict[str, type[Contract]] = {"layers": LayersContract, "forbidden": ForbiddenContract, "rooms": RoomsContract}
#: An import that is not there, by the contract that forbids it.
WRONG = {
    "tools over configs over the bridge over rewards over the learner": ("rewards.contracts.task", "configs.schema"),
    "rooms: every arrow between two is stated, and none runs in a circle": (
        "serving_bridge.text.tokenizer",
        "serving_bridge.queue.queue",
    ),
    "the learner imports no torch, vLLM or transformers": ("learner_jax.losses.kl", "torch"),
    "what other packages take from the learner, the serving side, rewards and configs import no JAX": (
        "learner_jax.contracts.model",
        "jax",
    ),
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """What imports what in Weir's code, as it is."""
    configure()
    return grimp.build_graph(*SETTINGS["root_packages"], include_external_packages=True, cache_dir=None)


def checked(stated: dict[str, Any], graph: grimp.ImportGraph) -> ContractCheck:
    session = {name: value for name, value in SETTINGS.items() if name != "contracts"}
    options = {name: value for name, value in stated.items() if name not in ("name", "type")}
    return KINDS[stated["type"]](stated["name"], session, options).check(copy.deepcopy(graph), verbose=False)


@pytest.mark.parametrize("stated", SETTINGS["contracts"], ids=lambda stated: stated["type"])
def test_a_contract_holds_until_an_import_runs_the_wrong_way(stated: dict[str, Any], graph: grimp.ImportGraph) -> None:
    importer, imported = WRONG[stated["name"]]
    assert {importer, imported} <= graph.modules
    assert checked(stated, graph).kept
    wrong = copy.deepcopy(graph)
    wrong.add_import(importer=importer, imported=imported)
    assert not checked(stated, wrong).kept
