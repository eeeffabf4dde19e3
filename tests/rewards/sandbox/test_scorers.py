"""What a model wrote is never run: scorers of reasoning-gym behind their guards, and our own sources."""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS

from rewards.contracts.task import RewardRequest, TaskError
from rewards.sandbox import confinement
from rewards.sandbox.answer_guards import GUARDS
from rewards.sandbox.plain_json import to_json
from rewards.sandbox.scorer_audit import OWN_DATA_ONLY, refusal, runners_of
from rewards.settings.task import TaskSettings
from rewards.tasks import reasoning_gym_scorer
from rewards.tasks.create import create_task

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


@pytest.mark.parametrize("nested", ["-{}", "1+{}", "{}*2", "2**-{}", "sin({})", "({})**2", "({})**1"])
def test_formulas_are_nested_to_a_bounded_depth(nested: str) -> None:
    taken, refused = "1", "1"
    for _ in range(8):
        taken = nested.format(taken)
    for _ in range(60):
        refused = nested.format(refused)
    assert GUARDS["simple_integration"](taken, {}) == (nested not in ("2**-{}",))
    assert not GUARDS["simple_integration"](refused, {})


def test_lists_are_nested_three_deep_and_numbers_have_a_bounded_size() -> None:
    assert [GUARDS["n_queens"](text, {}) for text in ("[[[1]]]", "[[[[1]]]]", "['a', (1, 2)]")] == [True, False, True]
    longest = f"[1{' ' * 3997}]"
    assert [GUARDS["n_queens"](text, {}) for text in (longest, f" {longest}", "['\u00e9']")] == [True, False, False]
    assert [GUARDS["countdown"](str(2**bits), {}) for bits in (4095, 4096)] == [True, False]


def test_signs_are_nested_59_times_at_most() -> None:
    for guard in (GUARDS["countdown"], GUARDS["simple_integration"]):
        assert [guard("-" * signs + "1", {}) for signs in (1, 59, 60)] == [True, True, False]


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
        if path.is_relative_to(folder / "code" / "guest"):
            continue  # runs inside the sandbox, where running an answer is the purpose
        for node in ast.walk(ast.parse(path.read_text())):
            called = getattr(node, "func", None)
            name = getattr(called, "id", getattr(called, "attr", ""))
            assert name not in {"eval", "exec", "__import__", "parse_expr", "sympify"}, f"{path.name}: {name}"
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not {"pickle", "marshal", "pebble", "multiprocessing"} & set(names), path.name
