"""Mistakes made on purpose: where they are found, and that the tests' verdict on each is told as it was."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tools.testing.mutate import __main__ as command
from tools.testing.mutate.sites import KINDS, mutations
from tools.testing.mutate.times import Times
from tools.testing.mutate.trial import TrialError, covering
from tools.testing.suite import Case, Run


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
        ["return g(a, a)"],
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


CLAMP = "learner_jax/room/clamp.py"
CLAMP_TESTS = "tests/learner_jax/room/test_clamp.py"


def tried(repository: Path, run: Run | None = None, was: str = "") -> dict[str, str | None]:
    """Who noticed what in the module: each mistake, or those of one piece of code."""
    found = [one for one in mutations(CLAMP, (repository / CLAMP).read_bytes()) if was in ("", one.was)]
    outcomes = command.try_all(found, repository, workers=1, times=Times(run))
    return {f"{outcome.mutation.was} -> {outcome.mutation.now}": outcome.verdict.noticed_by for outcome in outcomes}


def run_of(seconds: Mapping[str, float], failed: str = "") -> Run:
    """A run of the suite with one test in each of these files of the room."""
    folder = "tests/learner_jax/room"
    cases = [
        Case(f"{folder}/{name}.py", "test", "failed" if name == failed else "passed", took_s)
        for name, took_s in seconds.items()
    ]
    return Run(tuple(cases), "", sum(seconds.values()))


def add_tests(repository: Path, *names: str) -> Path:
    """Adds files of tests to the room, each of which passes, and returns where each notes its name and process."""
    notes = repository.parent / "notes"
    for name in names:
        (repository / "tests" / "learner_jax" / "room" / f"{name}.py").write_text(
            f"import os\n\n\ndef test():\n    with open({str(notes)!r}, 'a') as file:\n"
            f"        file.write(f'{name} {{os.getpid()}}\\n')\n"
        )
    return notes


def noted(notes: Path) -> list[tuple[str, str]]:
    return [(name, process) for name, _, process in (line.partition(" ") for line in notes.read_text().splitlines())]


def test_what_the_tests_notice_and_what_not(repository: Path) -> None:
    assert tried(repository) == {
        "min -> max": f"{CLAMP_TESTS}::test_clamp",
        "log.append(x) -> pass": None,
    }


def test_one_process_runs_the_tests_named_like_the_module_and_then_the_quickest(repository: Path) -> None:
    notes = add_tests(repository, "test_a", "test_b", "test_c", "test_clamp_more")
    (repository / CLAMP).write_text("def untested(x, log):\n    log.append(x)\n")
    (repository / CLAMP_TESTS).unlink()
    run = run_of({"test_a": 3.0, "test_b": 2.0, "test_c": 1.0, "test_clamp_more": 9.0})
    assert tried(repository, run) == {"log.append(x) -> pass": None}
    assert [name for name, _ in noted(notes)] == ["test_clamp_more", "test_c", "test_b", "test_a"]
    assert len({process for _, process in noted(notes)}) == 1


def test_only_what_has_no_time_runs_before_anything_is_changed(repository: Path) -> None:
    notes = add_tests(repository, "test_new", "test_timed", "test_too")
    run = run_of({"test_clamp": 0.1, "test_timed": 0.2})
    found = [one for one in mutations(CLAMP, (repository / CLAMP).read_bytes()) if one.now == "pass"]
    (outcome,) = command.try_all(found, repository, workers=1, times=Times(run))
    assert outcome.verdict.noticed_by is None
    first, then = noted(notes)[:2], noted(notes)[2:]
    assert {name for name, _ in first} == {"test_new", "test_too"}
    assert sorted(name for name, _ in then) == ["test_new", "test_timed", "test_too"]
    assert len({process for _, process in then}) == 1
    assert len({process for _, process in first} | {process for _, process in then}) == 2


def test_a_room_is_timed_once(repository: Path) -> None:
    notes = add_tests(repository, "test_other")
    (repository / "learner_jax" / "room" / "more.py").write_text("def more(log):\n    log.append(1)\n")
    paths = (CLAMP, "learner_jax/room/more.py")
    found = [one for path in paths for one in mutations(path, (repository / path).read_bytes()) if one.now == "pass"]
    outcomes = command.try_all(found, repository, workers=2)
    assert [outcome.verdict.noticed_by for outcome in outcomes] == [None, None]
    assert len(noted(notes)) == 1 + len(found)


def test_files_in_which_nothing_runs_by_default_are_no_failure(repository: Path) -> None:
    (repository / "pytest.ini").write_text("[pytest]\naddopts = -m 'not soak'\nmarkers = soak: long\n")
    place = repository / "tests" / "learner_jax" / "room" / "test_long.py"
    place.write_text("import pytest\n\n\n@pytest.mark.soak\ndef test():\n    assert False\n")
    assert tried(repository, run_of({"test_clamp": 0.1}), "log.append(x)") == {"log.append(x) -> pass": None}


def test_a_test_that_does_not_end_is_told_by_its_name(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.testing.mutate.trial._FLOOR_S", 1.0)
    (repository / CLAMP).write_text("def clamp(x, top):\n    while not x > top:\n        pass\n    return top\n")
    (noticed_by,) = tried(repository, run_of({"test_clamp": 0.1}), "not x > top").values()
    assert noticed_by == f"{CLAMP_TESTS}::test_clamp"


def test_tests_that_can_not_be_stopped_are_ended(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.testing.mutate.trial._FLOOR_S", 1.0)
    monkeypatch.setattr("tools.testing.mutate.trial._START_S", 2.0)
    (repository / CLAMP).write_text("def clamp(x, top):\n    while not x > top:\n        pass\n    return top\n")
    tests = repository / CLAMP_TESTS
    tests.write_text(f"{tests.read_text()}\n\nclamp(3, 2)  # no test: no limit of one\n")
    (noticed_by,) = tried(repository, run_of({"test_clamp": 0.1}), "not x > top").values()
    assert noticed_by == "nothing: the tests did not end within 3 s"


def test_what_was_compiled_of_one_mistake_is_not_run_for_another(repository: Path) -> None:
    """Whatever a test compiles: here code that Python takes as it is, without a look at its source."""
    compare = "def less(x, y):\n    return x < y\n\n\ndef more(x, y):\n    return x > y\n"
    (repository / CLAMP).write_text(compare)
    (repository / CLAMP_TESTS).write_text(
        "from py_compile import PycInvalidationMode, compile\n\nfrom learner_jax.room import clamp\n\n\n"
        "def test_less():\n"
        "    compile(clamp.__file__, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)\n"
        "    assert not clamp.less(1, 1)\n\n\n"
        "def test_more():\n    assert not clamp.more(1, 1)\n"
    )
    assert tried(repository, run_of({"test_clamp": 0.1})) == {
        "x < y -> (x <= y)": f"{CLAMP_TESTS}::test_less",
        "x > y -> (x >= y)": f"{CLAMP_TESTS}::test_more",
    }


def test_tests_that_fail_on_the_right_code_are_no_judges(repository: Path) -> None:
    tests = repository / CLAMP_TESTS
    tests.write_text(tests.read_text().replace("== 2", "== 3"))
    with pytest.raises(TrialError, match=r"test_clamp\.py::test_clamp does not pass on the code as it is"):
        tried(repository)


def test_a_run_in_which_a_needed_test_failed_is_no_judge(repository: Path) -> None:
    add_tests(repository, "test_a")
    with pytest.raises(TrialError, match=r"test_a\.py::test does not pass on the code as it is"):
        tried(repository, run_of({"test_clamp": 0.1, "test_a": 0.1}, failed="test_a"))
    gone = run_of({"test_clamp": 0.1, "test_a": 0.1, "test_gone": 0.1}, failed="test_gone")
    assert tried(repository, gone, "log.append(x)") == {"log.append(x) -> pass": None}


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


def test_the_command_goes_on_where_it_was_stopped(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notes, out = add_tests(repository, "test_other"), tmp_path / "out.jsonl"
    monkeypatch.setattr(command, "_REPOSITORY", repository)
    monkeypatch.setattr("sys.argv", ["mutate", "learner_jax", "--json", str(out), "--resume", "--least", "0.5"])
    assert command.main() == 0
    (kept,) = [line for line in out.read_text().splitlines() if json.loads(line)["noticed_by"] is None]
    out.write_text(f"{kept}\n")
    notes.write_text("")
    assert command.main() == 0
    assert "test_other" in notes.read_text()  # times are measured again; the mistake left over ended before it
    assert len(noted(notes)) == 1
    assert [json.loads(line)["now"] for line in out.read_text().splitlines()] == ["pass", "max"]
    assert "assert 3 == 2" in json.loads(out.read_text().splitlines()[1])["message"]
    notes.write_text("")
    assert command.main() == 0
    assert notes.read_text() == ""
    assert "NOT NOTICED learner_jax/room/clamp.py:6" in capsys.readouterr().out.rpartition("mutations of")[2]
    out.write_text("{}\n")
    with pytest.raises(SystemExit):
        command.main()
    assert "line 1, is no mutation that was tried" in capsys.readouterr().err


def test_the_command_takes_the_times_of_a_run(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notes, junit = add_tests(repository, "test_other"), tmp_path / "junit.xml"
    case = '<testcase classname="tests.learner_jax.room.{}" name="test" time="0.1">{}</testcase>'
    cases = case.format("test_clamp", "") + case.format("test_other", "")
    junit.write_text(f'<testsuite time="1">{cases}</testsuite>')
    monkeypatch.setattr(command, "_REPOSITORY", repository)
    given = ["mutate", "learner_jax", "--times", str(junit), "--least", "0.5"]
    monkeypatch.setattr("sys.argv", given)
    assert command.main() == 0
    assert [name for name, _ in noted(notes)] == ["test_other"]  # after the mistake that only it could see
    junit.write_text(junit.read_text().replace("</testcase>", "<error/></testcase>"))
    assert command.main() == 2
    assert "does not pass on the code as it is" in capsys.readouterr().out
    junit.write_text("no run")
    with pytest.raises(SystemExit):
        command.main()
    assert "is no XML" in capsys.readouterr().err
