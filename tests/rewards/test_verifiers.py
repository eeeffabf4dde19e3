"""What a model wrote is never run, and a verifier that it has taken over reaches nothing."""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS

from rewards.contracts.task import RewardRequest, TaskError
from rewards.sandbox import confinement
from rewards.sandbox import killable_pool as isolation_module
from rewards.sandbox.answer_guards import GUARDS
from rewards.sandbox.killable_pool import VerifierError, VerifierPool
from rewards.sandbox.plain_json import from_json, to_json
from rewards.sandbox.scorer_audit import OWN_DATA_ONLY, refusal, runners_of
from rewards.settings.task import TaskSettings
from rewards.tasks import reasoning_gym_scorer
from rewards.tasks.create import create_task
from tests.conftest import REPOSITORY

confined = pytest.mark.skipif(confinement.missing() != "", reason=f"this machine: {confinement.missing()}")


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    os.environ["WEIR_SECRET"] = os.environ["PGPASSWORD"] = "hunter2"
    made = VerifierPool("tests.support.hostile_verifiers", {}, num_workers=1, deadline_s=20, slice_s=20)
    made.call({"deed": "score", "with": 1}, key="")
    del os.environ["WEIR_SECRET"], os.environ["PGPASSWORD"]
    yield made
    made.close()


def ask(pool: VerifierPool, deed: str, value: Any = None) -> float:
    score = pool.call({"deed": deed, "with": value}, key="").score
    assert score is not None
    return score


# Processes


def test_results_come_back_and_every_answer_meets_a_fresh_process(pool: VerifierPool) -> None:
    assert ask(pool, "score", 0.25) == 0.25
    assert [ask(pool, "count") for _ in range(3)] == [1.0, 1.0, 1.0]


def test_the_verifier_sees_nothing_of_its_owners_environment(pool: VerifierPool) -> None:
    assert ask(pool, "secret") == 0.0


@confined
def test_a_taken_verifier_reaches_no_file_network_process_or_signal(pool: VerifierPool, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("a secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        attacks = [
            ("write", str(tmp_path / "new")),
            ("write", str(victim)),
            ("read", str(victim)),
            ("read", "/etc/passwd"),
            ("delete", str(victim)),
            ("connect", list(server.getsockname())),
            ("fork", None),
            ("kill_parent", None),
            ("kill_group", None),
            ("trace", None),
        ]
        for deed, value in attacks:
            with pytest.raises(VerifierError, match=r"PermissionError|Operation not permitted"):
                ask(pool, deed, value)
    assert ask(pool, "program", str(tmp_path / "new")) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]
    assert victim.read_text() == "a secret"
    # None of them harmed the process that forks the children.
    assert ask(pool, "score", 1) == 1.0


def test_what_a_verifier_writes_is_bounded_json_with_a_finite_score(pool: VerifierPool) -> None:
    class Exploit:
        def __reduce__(self) -> Any:
            return os.system, ("touch /tmp/weir-pwned",)

    raw = [
        pickle.dumps(Exploit(), protocol=0).decode("ascii"),
        "",
        "null",
        "1",
        "{}",
        '{"score": "1"}',
        '{"score": 1, "verdict": "pass"}',
        '{"score": NaN}',
        '{"score": 1e999}',
        '{"score": 1, "parts": {"x": [1]}}',
        '{"score": 1} {"score": 0}',
        "[" * 60_000,
        '{"score": 1' + "0" * 60_000 + "}",
    ]
    for text in raw:
        with pytest.raises(VerifierError, match="can't be read|gave no score" if text else "died with exit code 0"):
            ask(pool, "raw", text)
    assert ask(pool, "raw", '{"score": 0.5, "parts": {"x": 1}, "reasons": ["no"]}') == 0.5
    with pytest.raises(VerifierError, match="more than 65536 bytes"):
        ask(pool, "giant")
    assert not os.path.exists("/tmp/weir-pwned")
    assert ask(pool, "score", 1) == 1.0


def test_errors_of_a_verifier_are_told_without_control_characters(pool: VerifierPool) -> None:
    with pytest.raises(VerifierError, match=r"RuntimeError: \?\[31mred\?line"):
        ask(pool, "raise", "\x1b[31mred\nline")
    with pytest.raises(VerifierError, match="SystemExit: 7"):
        ask(pool, "sys_exit", 7)
    with pytest.raises(VerifierError, match="died with exit code 7"):
        ask(pool, "exit", 7)
    with pytest.raises(VerifierError, match="MemoryError"):
        ask(pool, "memory", 1 << 40)
    with pytest.raises(VerifierError, match="ValueError: Out of range"):
        ask(pool, "score", "inf")


def test_a_hanging_verifier_is_killed_and_the_pool_goes_on() -> None:
    pool = VerifierPool("tests.support.hostile_verifiers", {}, num_workers=1, deadline_s=1.0, slice_s=0.3)
    try:
        for deed in ("sleep", "spin"):
            with pytest.raises(VerifierError, match=r"no verdict within 1 s"):
                pool.call({"deed": deed, "with": 600}, key=deed)
        assert pool.call({"deed": "score", "with": 1}, key="").score == 1.0
    finally:
        pool.close()
    with pytest.raises(VerifierError, match="closed"):
        pool.call({"deed": "score", "with": 1}, key="")


def test_a_verifier_that_needs_more_than_its_slice_gets_its_deadline() -> None:
    pool = VerifierPool("tests.support.hostile_verifiers", {}, num_workers=1, deadline_s=60.0, slice_s=0.05)
    try:
        assert pool.call({"deed": "sleep", "with": 0.2}, key="").score == 1.0
    finally:
        pool.close()


def test_a_verifier_that_cannot_start_says_why() -> None:
    pool = VerifierPool("tests.support.hostile_verifiers", {"broken": True}, num_workers=1, deadline_s=1.0)
    with pytest.raises(VerifierError, match="didn't start: RuntimeError: no such verifier"):
        pool.call({"deed": "score", "with": 1}, key="")


def test_processes_end_with_their_owner_even_if_it_is_killed() -> None:
    program = (
        "import threading, time\n"
        "from rewards.sandbox.killable_pool import VerifierPool\n"
        "pool = VerifierPool('tests.support.hostile_verifiers', {}, num_workers=1, deadline_s=600, slice_s=600)\n"
        "pool.call({'deed': 'score', 'with': 1}, key='')\n"
        "threading.Thread(target=lambda: pool.call({'deed': 'sleep', 'with': 600}, key=''), daemon=True).start()\n"
        "time.sleep(1)\n"
        "print(flush=True)\n"
        "time.sleep(600)\n"
    )
    root = REPOSITORY
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        family = _descendants(owner.pid)
        while len(family) < 2:
            family = _descendants(owner.pid)
        assert len(family) == 2  # the process that forks, and the child that sleeps
        owner.kill()
        owner.wait(30)
    until = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in family) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in family if os.path.exists(f"/proc/{pid}")]


def _descendants(pid: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            children += [int(child) for child in (task / "children").read_text().split()]
    return children + [each for child in children for each in _descendants(child)]


def test_a_killed_verifier_process_is_an_error_and_is_replaced() -> None:
    pool = VerifierPool("tests.support.hostile_verifiers", {}, num_workers=1, deadline_s=60.0)
    try:
        assert pool.call({"deed": "score", "with": 1}, key="").score == 1.0
        os.kill(pool._idle[0]._child.pid, signal.SIGKILL)
        with pytest.raises(VerifierError, match="gone"):
            pool.call({"deed": "score", "with": 1}, key="")
        assert pool.call({"deed": "score", "with": 1}, key="").score == 1.0
    finally:
        pool.close()


@confined
def test_the_filter_knows_only_calls_of_its_own_machine() -> None:
    for machine in ("x86_64", "aarch64"):
        program = confinement.filter_program(machine)
        assert len(program) % 8 == 0
        assert len(program) // 8 < 256  # jumps are bytes


# Whose turn it is


def test_first_attempts_run_before_rests_and_problems_take_turns() -> None:
    turns = isolation_module._Turns(1)
    order: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with turns.taken("holder", is_rest=False, timeout_s=60):
            entered.set()
            leave.wait(60)

    def run(name: str, key: str, is_rest: bool) -> None:
        with turns.taken(key, is_rest=is_rest, timeout_s=60):
            order.append(name)

    threads = [threading.Thread(target=hold)]
    threads[0].start()
    assert entered.wait(60)
    calls = [("rest", "a", True), ("a1", "a", False), ("a2", "a", False), ("a3", "a", False), ("b1", "b", False)]
    for count, call in enumerate(calls, start=1):
        threads.append(threading.Thread(target=run, args=call))
        threads[-1].start()
        while len(turns._waiting) < count:
            time.sleep(0.001)
    leave.set()
    for thread in threads:
        thread.join(60)
    assert order[-1] == "rest"
    assert order.index("b1") < order.index("a3")
    assert order.index("a1") < order.index("a2") < order.index("a3")


def test_a_place_is_kept_for_first_attempts() -> None:
    turns = isolation_module._Turns(2)
    with turns.taken("a", is_rest=True, timeout_s=1):
        with pytest.raises(VerifierError, match="no verifier was free"), turns.taken("b", is_rest=True, timeout_s=0.05):
            pass
        with turns.taken("c", is_rest=False, timeout_s=1):
            pass


def test_slow_answers_to_one_problem_share_a_budget_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(isolation_module.time, "monotonic", lambda: now[0])
    budgets = isolation_module._Budgets(5.0)
    assert budgets.take("a") == 5.0
    assert budgets.take("a") == 0.0
    assert budgets.take("b") == 5.0
    budgets.give_back("b", 3.0)
    assert budgets.take("b") == 3.0
    now[0] += 30
    assert budgets.take("a") == pytest.approx(2.5)
    now[0] += 1e6
    assert budgets.take("a") == 5.0


def test_a_problem_whose_budget_is_spent_costs_slices_only() -> None:
    pool = VerifierPool("tests.support.hostile_verifiers", {}, num_workers=1, deadline_s=3.0, slice_s=1.0)
    try:
        pool._budgets.take("towers")
        with pytest.raises(VerifierError, match=r"no verdict within 1 s, and the other answers to this problem"):
            pool.call({"deed": "sleep", "with": 600}, key="towers")
        assert pool.call({"deed": "score", "with": 1}, key="towers").score == 1.0
    finally:
        pool.close()


# Scorers of reasoning-gym

#: Python that leaves a mark if it is run, in the shapes that scorers look for
_MARK = "weir_canary"
_RUN = f"__import__('sys').__dict__.setdefault('{_MARK}',[]).append(1)"
PROBES = [
    _RUN,
    f"[{_RUN}]",
    f"[[{_RUN}]]",
    f"({_RUN})",
    f"{{'a': {_RUN}}}",
    f"[c for c in [{_RUN}]]",
    f"1 + {_RUN}",
    f"x + {_RUN}",
    f"C*{_RUN} or x",
    f"<answer>{_RUN}</answer>",
    f"```python\n{_RUN}\n```",
    f"f'{{{_RUN}}}'",
    f"(lambda: {_RUN})()",
    f'S("{_RUN}")',
    f'sympify("{_RUN}")',
    f'!!python/object/apply:eval ["{_RUN}"]',
    f"x.__class__.__mro__[0].__subclasses__() or {_RUN}",
    "csys\ngetrecursionlimit\n(tR.",
]


def _own_scorers() -> list[str]:
    return sorted(n for n, (c, _) in DATASETS.items() if c.score_answer is not ProceduralDataset.score_answer)


def _entry(name: str) -> tuple[ProceduralDataset, dict[str, Any]] | None:
    options: dict[str, Any] = {"size": 2, "seed": 1}
    try:
        dataset = reasoning_gym.create_dataset(name, **options)
    except Exception:  # noqa: BLE001  (composite has no problems of its own)
        return None
    return dataset, dataset[0]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Texts that reach eval, exec, compile, ast, pickle or SymPy's parser while the test runs."""
    import sympy.parsing.sympy_parser as parser

    seen: list[str] = []

    def watch(holder: Any, name: str) -> None:
        original = getattr(holder, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            seen.extend(str(arg) for arg in args[:1] if isinstance(arg, str | bytes))
            return original(*args, **kwargs)

        monkeypatch.setattr(holder, name, call)

    for name in ("eval", "exec", "compile"):
        watch(builtins, name)
    watch(pickle, "loads")
    watch(parser, "eval_expr")
    watch(parser, "stringify_expr")
    yield seen
    sys.__dict__.pop(_MARK, None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_no_scorer_without_a_guard_runs_an_answer(watched: list[str]) -> None:
    tried = 0
    for name in sorted(DATASETS):
        if name in GUARDS or (made := _entry(name)) is None:
            continue
        dataset, entry = made
        for probe in PROBES:
            watched.clear()
            with contextlib.suppress(Exception):
                dataset.score_answer(probe, entry)
            assert not hasattr(sys, _MARK), f"{name} ran {probe!r}"
            assert not any(_MARK in text for text in watched), f"{name} evaluates {probe!r}"
        tried += 1
    assert tried > 90


def test_scorers_that_run_answers_are_exactly_those_with_a_guard(watched: list[str]) -> None:
    ran = set()
    for name in GUARDS:
        made = _entry(name)
        assert made is not None
        for probe in PROBES:
            with contextlib.suppress(Exception):
                made[0].score_answer(probe, made[1])
            if sys.__dict__.pop(_MARK, None):
                ran.add(name)
    assert ran == set(GUARDS)


def test_guards_refuse_every_probe_and_take_the_datasets_own_answers() -> None:
    for name, guard in GUARDS.items():
        dataset = reasoning_gym.create_dataset(name, size=12, seed=2)
        entries = [dataset[index] for index in range(12 if name != "puzzle24" else 1)]
        assert not [probe for probe in PROBES[:-1] if guard(probe, entries[0])], name
        own = [e["answer"] or e["metadata"]["valid_answers"][0] for e in entries]
        refused = [a for a, e in zip(own, entries, strict=True) if not guard(a, e)]
        # An answer with an integral in it is the question again: any question's would earn the full reward.
        assert not [a for a in refused if "Integral" not in a], name
        assert len(refused) < len(entries) / 2, name


@pytest.mark.parametrize(
    "answer",
    ["9**9**9**9", "(9**9**9)**9", "9**99999", "((2**64)**64)**64", "1" * 3000, "(" * 3000, "1.0e9999", "1_000j"]
    + ["x**x**x", "x**10**9", "(x+1)**(9**9)", "exp(exp(9**99))**999**9", "f(x)", "x.y", "x[0]", "x if x else x"]
    + ["x, x", "sin(x, y)", "sin(*x)", "sin(x=1)", "x:=1", "'x'", "x # y", "x\n+1", "xy", "\uff58+1", "1/0**999999"],
)
def test_absurd_expressions_never_reach_a_parser(answer: str) -> None:
    assert not GUARDS["simple_integration"](answer, {})
    assert not GUARDS["countdown"](answer, {})


@pytest.mark.parametrize("answer", ["1 + 2*(3 - 4)/5", "2**10", "-(3)", "+7", "0", "1.5*2", "(((1)))", "12*2", "2**-1"])
def test_arithmetic_reaches_the_parser(answer: str) -> None:
    assert GUARDS["puzzle24"](answer, {})
    assert GUARDS["polynomial_multiplication"](answer, {})


def test_formulas_reach_the_parser() -> None:
    for answer in (
        "x**3/3 + C",
        "-4*(-2*x - 8)**(3/2)/3 + C",
        "x*log(x) - x + C",
        "exp(2*x)*sin(x)",
        "sqrt(x)**3",
        "E",
    ):
        assert GUARDS["intermediate_integration"](answer, {})
        assert not GUARDS["countdown"](answer, {})


def test_every_installed_scorer_that_may_run_text_is_known() -> None:
    runners = {name for name, (dataset, _) in DATASETS.items() if runners_of(dataset)}
    assert runners == set(GUARDS) | OWN_DATA_ONLY
    assert not any(refusal(name, dataset) for name, (dataset, _) in DATASETS.items())


def test_a_new_scorer_that_runs_answers_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    countdown, config = DATASETS["countdown"]
    monkeypatch.setitem(DATASETS, "countdown2", (countdown, config))
    with pytest.raises(TaskError, match=r"countdown2 can't be used: its scorer may run .* \(it calls parse_expr\)"):
        create_task(TaskSettings(provider="reasoning_gym", name="countdown2"), seed=0)


def _hostile(tmp_path: Path) -> list[str]:
    command = f"__import__('os').system('touch {tmp_path}/pwned')"
    return [shape.format(command) for shape in ("{}", "[{}]", "1 + {}")]


@pytest.mark.parametrize("name", sorted(GUARDS))
def test_no_scorer_behind_its_guard_runs_an_answer(name: str, tmp_path: Path) -> None:
    made = _entry(name)
    assert made is not None
    entry = made[1]
    score = reasoning_gym_scorer.create({"name": name, "options": json.dumps({"size": 2, "seed": 1})})
    own = entry["answer"] or entry["metadata"]["valid_answers"][0]
    for answer in _hostile(tmp_path):
        assert score({"answer": answer, "entry": to_json(entry)})["score"] < 0.1
    assert not list(tmp_path.iterdir())
    assert score({"answer": own, "entry": to_json(entry)})["score"] == 1.0


def test_no_answer_of_a_task_is_run(tmp_path: Path) -> None:
    task = create_task(TaskSettings(provider="reasoning_gym", name="countdown"), seed=0, num_workers=1, deadline_s=60)
    problem = task.problem("train", 0)
    try:
        for answer in _hostile(tmp_path):
            assert task.score(RewardRequest(problem, answer, "stop")).verdict == "fail"
        assert not list(tmp_path.iterdir())
        assert task.score(RewardRequest(problem, problem.answer, "stop")).verdict == "pass"
    finally:
        task.close()


def test_no_source_of_ours_runs_or_unpickles_text() -> None:
    folder = Path(confinement.__file__).parents[1]
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = getattr(node, "func", None)
            name = getattr(called, "id", getattr(called, "attr", ""))
            assert name not in {"eval", "exec", "__import__", "parse_expr", "sympify"}, f"{path.name}: {name}"
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not {"pickle", "marshal", "pebble", "multiprocessing"} & set(names), path.name


def test_problems_survive_json() -> None:
    value = {"a": (1, 2.5, None), 3: {"x"}, "nan": float("inf"), "deep": [{"k": ((),)}], ("t",): True}
    assert from_json(json.loads(json.dumps(to_json(value)))) == value
    with pytest.raises(TypeError, match="object is not plain data"):
        to_json({"a": object()})
