"""Doors: what a setting names is found, or an error says what to change."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from learner_jax.runtime import Door, DoorError, load_object, raised, source_of
from tests.support.user_folder import working_in

REWARD = Door(
    kind="test_reward",
    setting="task.reward",
    built_in={"square": "tests.learner_jax.runtime.test_doors:square"},
    positional=("prompt", "answer", "row"),
)
OWN = """
def exact(prompt, answer, row):
    return "own"
class Judge:
    def __call__(self, prompt, answer, row): return 2
    def __init__(self, prompt, answer, row): pass
    @staticmethod
    def rate(prompt, answer, row): return 1
def short(prompt): return 0
def any_of(*all): return 0
def with_more(prompt, answer, row, strict=True): return 0
def needs_more(prompt, answer, row, *, strict): return 0
number = 3
"""


def square(prompt: str, answer: str, row: dict) -> float:
    return 9.0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    """The working folder, with a module of the user's."""
    (tmp_path / "my_rewards.py").write_text(OWN)
    with working_in(tmp_path):
        yield tmp_path


def offer(folder: Path, package: str, *lines: str, group: str = "weir.test_reward") -> None:
    """Installs a package's metadata with these entry points."""
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    sys.path.append(str(folder))


def refused(name: str) -> str:
    with pytest.raises(DoorError) as caught:
        REWARD.open(name)
    assert not caught.value.can_heal
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_comes_with_weir_has_a_name() -> None:
    assert REWARD.open("square") is square


def test_code_of_the_working_folder_is_found() -> None:
    assert REWARD.open("my_rewards:exact")("", "", {}) == "own"
    assert isinstance(REWARD.open("my_rewards:Judge"), type)
    for name in ("any_of", "with_more"):
        REWARD.open(f"my_rewards:{name}")


def test_code_in_packages_of_the_working_folder_is_found(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine/of_today.py").write_text(OWN)
    assert REWARD.open("mine.of_today:Judge.rate")("", "", {}) == 1
    assert source_of("mine.of_today:exact") == folder / "mine/of_today.py"


def test_the_working_folder_is_searched_last(folder: Path) -> None:
    REWARD.open("my_rewards:exact")
    assert sys.path[-1] == str(folder)
    assert sys.path.count(str(folder)) == 1


def test_packages_offer_code_by_entry_points(folder: Path) -> None:
    offer(folder, "other", "exact = my_rewards:exact", "square = my_rewards:short")
    assert REWARD.open("exact")("", "", {}) == "own"
    assert REWARD.open("square") is square, "a name of Weir's can't be taken"
    assert REWARD.names() == ["exact", "square"]


def test_a_name_that_two_packages_offer_is_refused(folder: Path) -> None:
    offer(folder, "one", "exact = my_rewards:exact")
    offer(folder, "two", "exact = my_rewards:any_of")
    assert "several packages: my_rewards:any_of, my_rewards:exact; give one of these" in refused("exact")


def test_an_unknown_name_lists_the_known_and_the_nearest(folder: Path) -> None:
    offer(folder, "other", "cubic = my_rewards:exact")
    said = refused("sqare")
    assert said == (
        "task.reward 'sqare' is unknown; did you mean square? known: cubic, square, or \"package.module:name\" for "
        "your own"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_rewards.exact", 'the name is "my_rewards:exact"'),
        ("my_rewards.py:exact", 'did you mean "my_rewards:exact"?'),
        ("./my_rewards.py:exact", 'did you mean "my_rewards:exact"?'),
        ("my_rewards:", 'not of the form "package.module:name"'),
        ("my rewards:exact", 'not of the form "package.module:name"'),
        ("my_rewards:exact()", 'not of the form "package.module:name"'),
    ],
)
def test_names_of_other_forms_are_refused(name: str, said: str) -> None:
    assert said in refused(name)


def test_a_module_that_is_not_there_says_where_it_was_looked_for(folder: Path) -> None:
    said = refused("my_reward:exact")
    assert "there is no module 'my_reward'; did you mean my_rewards? looked in" in said
    assert f"looked in {folder}, " in said
    assert sysconfig.get_path("purelib") in said


def test_a_name_that_is_not_in_the_module_gives_the_nearest(folder: Path) -> None:
    said = refused("my_rewards:exat")
    assert f"my_rewards ({folder / 'my_rewards.py'}) has no 'exat'; did you mean exact? it has Judge, any_of" in said


def test_what_a_module_needs_and_what_it_raises_is_told(folder: Path) -> None:
    (folder / "needy.py").write_text("import no_such_package.inner\n")
    assert "needs the module 'no_such_package', which is not there" in refused("needy:exact")
    (folder / "broken.py").write_text("1 / 0\n")
    assert "can't be imported: ZeroDivisionError: division by zero" in refused("broken:exact")
    (folder / "wrong.py").write_text("def exact(:\n")
    assert "wrong.py, line 1" in refused("wrong:exact")
    (folder / "script.py").write_text("import sys; sys.exit(3)\n")
    assert "can't be imported: SystemExit: 3" in refused("script:exact")


def test_what_can_not_be_called_so_says_what_was_expected() -> None:
    assert "is of type int, expected a function or class that takes (prompt, answer, row)" in refused(
        "my_rewards:number"
    )
    assert "takes (prompt), expected (prompt, answer, row): too many" in refused("my_rewards:short")
    assert "expected (prompt, answer, row): missing a required argument: 'strict'" in refused("my_rewards:needs_more")


def test_arguments_by_name_are_looked_at() -> None:
    door = Door(kind="t", setting="task.provider", positional=("settings",), keywords=("seed",))
    with pytest.raises(DoorError, match=r"takes \(prompt\), expected \(settings, seed=\.\.\.\): got an unexpected"):
        door.open("my_rewards:short")


@pytest.mark.parametrize("name", ["rewards", "queue"])
def test_a_file_that_has_a_packages_name_is_to_be_renamed(folder: Path, name: str) -> None:
    (folder / f"{name}.py").write_text(OWN)
    said = refused(f"{name}:exact")
    assert f"{folder / name}.py is hidden by " in said
    assert "rename it" in said


def test_a_folder_beside_a_package_of_the_same_name_is_to_be_renamed(folder: Path) -> None:
    (folder / "tools").mkdir()
    (folder / "tools/scores.py").write_text(OWN)
    assert "tools/scores.py is hidden by " in refused("tools.scores:exact")


def test_packages_of_weirs_stay_reachable_beside_such_a_file(folder: Path) -> None:
    (folder / "rewards.py").write_text(OWN)
    assert load_object("rewards.contracts:PASS_SCORE", setting="x") < 1


def test_code_from_outside_has_the_version_of_its_file_and_weirs_has_none(folder: Path) -> None:
    digest = hashlib.sha256(OWN.encode()).hexdigest()
    version = REWARD.version("my_rewards:exact")
    assert version.startswith("my_rewards:exact:")
    assert digest.startswith(version.rpartition(":")[2])
    assert len(version.rpartition(":")[2]) >= 12
    (folder / "my_rewards.py").write_text(f"{OWN}\n")
    assert REWARD.version("my_rewards:exact") != version
    assert REWARD.version("square") == "square"
    offer(folder, "other", "cubic = my_rewards:exact")
    assert REWARD.version("cubic").startswith("cubic:")
    assert REWARD.version(REWARD.built_in["square"]) == REWARD.built_in["square"]
    assert REWARD.version("sys:exit") == "sys:exit"  # of the interpreter, which has no file of it


def test_a_module_that_was_written_a_moment_ago_is_found(folder: Path) -> None:
    """Also where the folder's time does not show it: Python keeps what is in a folder until that changes."""
    assert "there is no module 'later'" in refused("later:exact")
    before = folder.stat()
    (folder / "later.py").write_text(OWN)
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert REWARD.open("later:exact")("", "", {}) == "own"


def test_a_message_of_an_error_is_bounded_and_may_fail_itself() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert raised(Broken()) == "Broken: its message can't be read"
    assert raised(KeyError("x" * 10_000_000)) == f"KeyError: '{'x' * 499}..."
    assert raised(ValueError("a\nb")) == "ValueError: a b"
    assert raised(ValueError("\x1b[31m\ud800")) == r"ValueError: \x1b[31m\ud800"


def test_an_error_names_a_line_of_the_user_s_code_and_none_of_python_s_own(folder: Path) -> None:
    source = "import json\n\ndef exact(prompt, answer, row):\n    return json.loads(answer)\n"
    (folder / "my_rewards.py").write_text(source)
    with pytest.raises(ValueError, match="Expecting value") as unread:
        REWARD.open("my_rewards:exact")("", "no JSON", {})
    assert raised(unread.value).endswith("(my_rewards.py, line 4)")
    with pytest.raises(ValueError, match="Expecting value") as unread:
        json.loads("no JSON")  # only this file and Python's own lines
    unread.value.__traceback__ = unread.value.__traceback__.tb_next
    assert raised(unread.value) == "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"
