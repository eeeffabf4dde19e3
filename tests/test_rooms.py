"""The rooms of the code: each says what it is and what it hands out, and is entered by that door."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from grimp import ImportGraph

from tests.conftest import REPOSITORY
from tests.support.rooms import RoomsContract

PACKAGES = ("learner_jax", "rewards", "serving_bridge", "tools")


def is_room(folder: Path) -> bool:
    """Whether a package holds no other: those that do are no rooms, but what rooms stand in."""
    return not any(folder.glob("*/__init__.py"))


ROOMS = sorted(
    path.parent
    for package in PACKAGES
    for path in (REPOSITORY / package).rglob("*/__init__.py")
    if path.parent != REPOSITORY / package and is_room(path.parent)
)
NAMES = [".".join(room.relative_to(REPOSITORY).parts) for room in ROOMS]


def room_of(module: str) -> str | None:
    """The room that a module is in, or is."""
    return next((name for name in NAMES if f"{module}.".startswith(f"{name}.")), None)


def imports(path: Path) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]


def sources() -> list[Path]:
    return [path for top in (*PACKAGES, "configs") for path in (REPOSITORY / top).rglob("*.py")]


@pytest.mark.parametrize("room", ROOMS, ids=NAMES)
def test_a_room_says_in_one_sentence_what_it_is_and_names_what_it_hands_out(room: Path) -> None:
    tree = ast.parse((room / "__init__.py").read_text())
    sentence = ast.get_docstring(tree)
    assert sentence
    assert len(sentence.splitlines()[0]) < 120
    assert any(ast.unparse(node).startswith("__all__ = ") for node in tree.body)


def test_files_and_classes_stay_small_enough_for_one_idea() -> None:
    large = []
    for path in [*sources(), *(REPOSITORY / "tests").rglob("*.py")]:
        text, name = path.read_text(), path.relative_to(REPOSITORY)
        if (lines := text.count("\n")) > 400:
            large.append(f"{name} has {lines} lines, allowed are 400")
        large += [
            f"{name}: {node.name} has {lines} lines, allowed are 250"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ClassDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) > 250
        ]
    assert not large


def bound(module: str) -> set[str] | None:
    """Names that a module of ours binds, and the modules below it; None if there is no such module."""
    place = REPOSITORY.joinpath(*module.split("."))
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    below = {child.stem for child in place.glob("*") if child.suffix == ".py" or child.is_dir()}
    if not path.is_file():
        return below if place.is_dir() else None
    names = set(below)
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name for alias in aliases}
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
    return names


def test_what_is_imported_is_there() -> None:
    """Programs that only the long tests start, and imports inside functions, break silently when a name moves."""
    known: dict[str, set[str] | None] = {}
    missing = []
    for path in [*sources(), *(REPOSITORY / "tests").rglob("*.py")]:
        for node in imports(path):
            module = node.module or ""
            if module.partition(".")[0] not in (*PACKAGES, "configs", "tests"):
                continue
            if module not in known:
                known[module] = bound(module)
            names = known[module]
            missing += [
                f"{path.relative_to(REPOSITORY)}:{node.lineno}: {module} has no {alias.name}"
                for alias in node.names
                if names is None or alias.name not in names
            ]
    assert not missing


def test_rooms_are_entered_by_their_faces() -> None:
    """`from room import name` or `from room import file`, never `from room.file import name`."""
    behind = []
    for path in sources():
        own = ".".join(path.parent.relative_to(REPOSITORY).parts)
        for node in imports(path):
            room = room_of(node.module or "")
            if room is not None and node.module != room and room != own:
                behind.append(f"{path.relative_to(REPOSITORY)}:{node.lineno} imports from {node.module}")
    assert not behind, "\n".join(behind)


def test_no_test_imports_from_another() -> None:
    """What several need stands in tests/support: a test that is moved or dropped takes nothing along."""
    found = [
        f"{path.relative_to(REPOSITORY)}: {node.module}"
        for path in sorted((REPOSITORY / "tests").rglob("*.py"))
        for node in imports(path)
        if (node.module or "").startswith("tests") and not re.match(r"tests\.(conftest|support)\b", f"{node.module}.")
    ]
    assert not found


def test_no_room_hands_out_what_is_private() -> None:
    private = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno} {alias.name}"
        for path in sources()
        for node in imports(path)
        for alias in node.names
        if alias.name.startswith("_") and (node.module or "").startswith((*PACKAGES, "configs"))
    ]
    assert not private, "\n".join(private)


def test_every_room_stands_in_the_table() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]
    table = next(contract["arrows"] for contract in settings["contracts"] if contract["type"] == "rooms")
    assert {line.partition(" ->")[0] for line in table} == set(NAMES)


def broken(arrows: list[str], *found: tuple[str, str]) -> list[str]:
    graph = ImportGraph()
    for importer, imported in found:
        for module in (importer, imported):
            if module not in graph.modules:
                graph.add_module(module)
        graph.add_import(importer=importer, imported=imported)
    contract = RoomsContract("rooms", {}, {"arrows": arrows})
    return contract.check(graph, verbose=False).metadata["problems"]


def test_the_table_of_rooms_can_be_broken() -> None:
    arrow = ("a.x.f", "a.y.g")
    assert broken(["a.x -> a.y", "a.y ->"], arrow, ("a.x.f", "a.x.h"), ("other", "a.y")) == []
    assert broken(["a.x ->", "a.y ->"], arrow) == ["a.x -> a.y, which no line states: a.x.f -> a.y.g"]
    assert broken(["a.x -> a.y", "a.y -> a.x"], arrow) == [
        "a.y -> a.x is stated, and nothing imports it",
        "a circle: a.x -> a.y -> a.x",
    ]
