"""The tests that share real vLLM servers: they run in one worker of pytest-xdist, file after file in a fixed order."""

from __future__ import annotations

#: The first needs a server that was just started, and the last ends it.
FILES = (
    "tests/serving_bridge/fleet/test_weight_round.py",
    "tests/serving_bridge/fleet/test_weight_round_controllers.py",
    "tests/serving_bridge/fleet/test_weight_round_proof.py",
    "tests/serving_bridge/access/test_vllm_attacks.py",
    "tests/serving_bridge/rollout/test_on_vllm.py",
    "tests/serving_bridge/rollout/test_tools_on_vllm.py",
    "tests/serving_bridge/fleet/test_weight_round_servers.py",
)


def file_of(nodeid: str) -> str:
    """The path of a test's file, from the repository's root."""
    return nodeid.split("::", 1)[0]


def scope_of(nodeid: str) -> str:
    """Names what must run in one worker: the test's file, or all files that share servers."""
    return "shared servers" if file_of(nodeid) in FILES else file_of(nodeid)
