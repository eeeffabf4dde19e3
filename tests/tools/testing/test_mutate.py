"""Mistakes made on purpose: where they are found, and that the tests' verdict on each is told as it was."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tools.testing.mutate import __main__ as command
from tools.testing.mutate.sites import KINDS, mutations
from tools.testing.mutate.trial import TrialError, covering


def body(*lines: str) -> bytes:
    return "\n".join(["def f(self, a, b, mask):", *(f"    {line}" for line in lines), ""]).encode()


@pytest.mark.parametrize(
    ("kind", "lines", "expected"),
    [
        ("bound", ["return a < b"], {("a < b", "(a <= b)")}),
        ("bound", ["return a[b + 1]"], {("b + 1", "(b)")}),
        ("bound", ["return a is None"], {("a is None", "(a is not None)")}),
        ("extreme", ["return min(a, b)"], {("min", "max")}),
        ("extreme", ["return a.b.any()"], {("a.b.any", "a.b.all")}),
        ("logic", ["return a and b"], {("a and b", "(a or b)")}),
        ("logic", ["return not a"], {("not a", "(a)")}),
        ("missing effect", ["a.sync()", "return b"], {("a.sync()", "pass")}),
        ("missing effect", ["await a.sync()"], {("await a.sync()", "pass")}),
        ("order of effects", ["a.save()", "b.free()"], {("a.save()\n    b.free()", "b.free(); a.save()")}),
        ("missing update", ["self.last = a"], {("self.last = a", "pass")}),
        ("missing update", ["self.count += 1"], {("self.count += 1", "pass")}),
        ("missing check", ["if a > b:", "    raise ValueError(a)"], {("a > b", "False")}),
        ("swapped arguments", ["return g(a, b, 1)"], {("a, b", "b, a")}),
        ("missing mask", ["return a * mask"], {("a * mask", "(a)")}),
        ("missing mask", ["return jnp.where(mask, a, 0)"], {("jnp.where(mask, a, 0)", now) for now in ("(a)", "(0)")}),
    ],
)  # fmt: skip
def test_each_kind_is_found_where_it_is(kind: str, lines: list[str], expected: set[tuple[str, str]]) -> None:
    found = mutations("m.py", body(*lines))
    assert {(one.was, one.now) for one in found if one.kind == kind} == expected


@pytest.mark.parametrize(
    "lines",
    [
        ['"""Documented."""'],
        ["raise ValueError(a < b)"],
        ['print(a, b, f"{a + 1}")'],
        ["assert a < b"],
        ["x: Literal[1 < 2]"],
        ["return isinstance(a, b)"],
    ],
)
def test_nothing_is_changed_in_what_decides_nothing(lines: list[str]) -> None:
    found = mutations("m.py", body(*lines))
    assert {one.kind for one in found} <= ({"swapped arguments"} if "print" in lines[0] else set())


def test_every_mutation_is_other_code_that_compiles() -> None:
    kinds = set()
    rooms = [REPOSITORY / "serving_bridge" / "queue", REPOSITORY / "learner_jax" / "losses"]
    for path in (path for room in rooms for path in sorted(room.glob("*.py"))):
        source = path.read_bytes()
        for one in mutations(str(path), source):
            kinds.add(one.kind)
            wrong = one.applied(source)
            assert wrong != source
            compile(wrong, str(path), "exec")
    assert kinds == set(KINDS)


def test_a_module_that_has_changed_is_not_changed_in_the_wrong_place() -> None:
    (one,) = [found for found in mutations("m.py", body("return a < b")) if found.kind == "bound"]
    with pytest.raises(ValueError, match=r"m\.py:2 no longer reads 'a < b'"):
        one.applied(body("return b < a"))


def test_tests_nearest_to_a_module_come_first() -> None:
    tests = [
        *("tests/serving_bridge/queue/test_rows.py", "tests/serving_bridge/queue/test_rows_sizes.py"),
        *("tests/serving_bridge/queue/test_queue.py", "tests/serving_bridge/test_x.py", "tests/tools/test_plan.py"),
        *("tests/tools/test_report.py", "tests/tools/assembly/test_paths.py"),
    ]
    assert covering("serving_bridge/queue/rows.py", tests) == [[tests[0], tests[1]], [tests[2]]]
    assert covering("serving_bridge/queue/other.py", tests) == [tests[:3]]
    assert covering("tools/plan.py", tests) == [["tests/tools/test_plan.py"]]
    assert covering("rewards/tasks/sums.py", tests) == []


def test_what_is_named_as_equivalent_is_still_there_and_has_a_reason() -> None:
    entries = tomllib.loads((REPOSITORY / "tests" / "equivalent_mutations.toml").read_text())["mutation"]
    assert entries
    for entry in entries:
        found = mutations(entry["path"], (REPOSITORY / entry["path"]).read_bytes())
        assert (entry["was"], entry["now"]) in {(one.was, one.now) for one in found}, entry
        assert entry["why"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A package of one module, half tested."""
    root = tmp_path / "repository"
    (root / "learner_jax" / "room").mkdir(parents=True)
    (root / "tests" / "learner_jax" / "room").mkdir(parents=True)
    (root / "learner_jax" / "room" / "clamp.py").write_text(
        "def clamp(x, top):\n    return min(x, top)\n\n\ndef untested(x, log):\n    log.append(x)\n"
    )
    (root / "tests" / "learner_jax" / "room" / "test_clamp.py").write_text(
        "from learner_jax.room.clamp import clamp\n\n\ndef test_clamp():\n    assert clamp(3, 2) == 2\n"
    )
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    return root


def tried(repository: Path) -> dict[str, str | None]:
    path = "learner_jax/room/clamp.py"
    found = mutations(path, (repository / path).read_bytes())
    outcomes = command.try_all(found, repository, workers=1)
    return {f"{outcome.mutation.was} -> {outcome.mutation.now}": outcome.noticed_by for outcome in outcomes}


def test_what_the_tests_notice_and_what_not(repository: Path) -> None:
    assert tried(repository) == {
        "min -> max": "tests/learner_jax/room/test_clamp.py::test_clamp",
        "log.append(x) -> pass": None,
    }


def test_a_mistake_that_never_ends_is_noticed(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.testing.mutate.trial._FLOOR_S", 5.0)
    room = repository / "learner_jax" / "room"
    (room / "clamp.py").write_text("def clamp(x, top):\n    while not x > top:\n        pass\n    return top\n")
    (noticed_by,) = {seen for mistake, seen in tried(repository).items() if mistake.startswith("not x > top")}
    assert noticed_by is not None
    assert "the tests did not end within" in noticed_by


def test_tests_that_fail_on_the_right_code_are_no_judges(repository: Path) -> None:
    tests = repository / "tests" / "learner_jax" / "room" / "test_clamp.py"
    tests.write_text(tests.read_text().replace("== 2", "== 3"))
    with pytest.raises(TrialError, match=r"test_clamp\.py::test_clamp does not pass on the code as it is"):
        tried(repository)


def test_a_sample_is_the_seed_s_and_has_every_kind() -> None:
    path = REPOSITORY / "serving_bridge" / "queue" / "rows.py"
    found = mutations(str(path), path.read_bytes())
    drawn = command.sample(found, 20, seed=3)
    assert drawn == command.sample(found, 20, seed=3) != command.sample(found, 20, seed=4)
    assert len(set(drawn)) == 20
    assert {one.kind for one in drawn} == {one.kind for one in found}
    assert len(command.sample(found, 10**6, seed=0)) == len(found)


def test_the_command_ends_with_1_when_too_little_was_noticed(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_REPOSITORY", repository)
    monkeypatch.setattr("sys.argv", ["mutate", "learner_jax", "--json", str(tmp_path / "out.jsonl"), "--least", "0.5"])
    assert command.main() == 0
    monkeypatch.setattr("sys.argv", ["mutate", "learner_jax"])
    assert command.main() == 1
    assert "NOT NOTICED learner_jax/room/clamp.py:6 missing effect: log.append(x) -> pass" in capsys.readouterr().out
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    (repository / "tests" / "equivalent_mutations.toml").write_text(
        '[[mutation]]\npath = "learner_jax/room/clamp.py"\nwas = "log.append(x)"\nnow = "pass"\nwhy = "a log"\n'
    )
    assert command.main() == 0
