"""Whose CPU time a process's counts as, and that nothing of a tree of real processes is missed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import pytest

from tools.bench.processes import Sample, Sampler, peer_role, weir_role

PYTHON = "/some/python"


@pytest.mark.parametrize(
    ("words", "name", "parent", "role"),
    [
        ([PYTHON, "-P", "-m", "tools.train", "--config", "x"], "python", "supervisor", "supervisor"),
        ([PYTHON, "-P", "-m", "tools.serve", "--config", "x"], "python", "supervisor", "fleet"),
        ([PYTHON, "-P", "-m", "tools.learner", "--config", "x"], "python", "supervisor", "learner"),
        ([PYTHON, "-P", "-m", "tools.rollout", "--config", "x"], "python", "supervisor", "rollout worker"),
        ([PYTHON, "guard.py", "--", PYTHON, "-m", "tools.learner"], "python", "supervisor", "supervisor"),
        ([PYTHON, "guard.py", "--", PYTHON, "-m", "vllm.entrypoints.openai.api_server"], "python", "fleet", "fleet"),
        ([PYTHON, "-m", "vllm.entrypoints.openai.api_server"], "python", "fleet", "vLLM server"),
        ([PYTHON, "-m", "quick_start", "vllm.entrypoints.openai.api_server"], "python", "fleet", "vLLM server"),
        ([PYTHON, "-m", "vllm.entrypoints.openai.api_server"], "python", "vLLM server", "vLLM engine"),
        ([PYTHON, "-m", "vllm.entrypoints.openai.api_server"], "python", "vLLM engine", "vLLM worker"),
        (["VLLM::EngineCore"], "VLLM::EngineCor", "vLLM server", "vLLM engine"),
        (["VLLM::Worker"], "VLLM::Worker", "vLLM engine", "vLLM worker"),
        (["postgres: writer"], "postgres", "supervisor", "database"),
        ([PYTHON, "-c", "from multiprocessing.resource_tracker import main"], "python", "vLLM engine", "vLLM engine"),
        ([PYTHON, "-m", "rewards.sandbox.verifier_process"], "python", "rollout worker", "rollout worker"),
        ([], "", "learner", "learner"),
        ([PYTHON, "-m"], "python", "learner", "learner"),
    ],
)
def test_a_process_counts_as_what_it_runs_or_else_as_its_parent(
    words: list[str], name: str, parent: str, role: str
) -> None:
    assert weir_role(words, name, parent) == role


def test_all_of_a_peer_counts_as_one() -> None:
    assert peer_role("trl")([PYTHON, "-m", "tools.learner"], "python", "supervisor") == "trl"


PARENT = textwrap.dedent(
    """
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
    child.wait()
    print("child ended", flush=True)
    time.sleep(60)
    """
)
CHILD = textwrap.dedent(
    """
    import time
    while time.process_time() < 0.5:
        pass
    time.sleep(1.0)
    """
)


def test_the_time_of_a_child_that_ended_still_counts() -> None:
    def role_of(words: object, name: str, parent: str) -> str:
        return "child" if parent == "parent" else "parent"

    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True) as process:
        try:
            sampler, found = Sampler(process.pid, role_of), list[Sample]()
            deadline = time.monotonic() + 60
            while len(found) < 2 or found[-1].cpu_s.get("child", 0) < 0.4:
                assert time.monotonic() < deadline, found[-1:]
                found.append(sampler.sample(with_memory=True))
                time.sleep(0.05)
            assert process.stdout is not None
            assert process.stdout.readline() == "child ended\n"
            last = sampler.sample(with_memory=True)
        finally:
            process.kill()
    assert last.cpu_s["child"] >= 0.4
    assert last.cpu_s["parent"] < 0.4
    assert last.memory is not None
    assert last.memory.keys() == {"parent"}
    assert last.memory["parent"] > 2**20
    assert max((sample.memory or {}).get("child", 0) for sample in found) > 2**20
    assert last.machine_s >= found[0].machine_s


def test_a_tree_that_is_gone_gives_what_was_seen_of_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        sampler = Sampler(process.pid, peer_role("trl"))
        first = sampler.sample()
        process.communicate(b"\n")
    last = sampler.sample(with_memory=True)
    assert last.cpu_s == first.cpu_s
    assert last.cpu_s.keys() == {"trl"}
    assert last.memory == {}


def test_what_has_no_known_parent_belongs_to_the_job() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        found = Sampler(process.pid, weir_role).sample()
        process.communicate(b"\n")
    assert found.cpu_s.keys() == {"supervisor"}
