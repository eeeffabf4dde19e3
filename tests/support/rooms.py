"""An import contract: every arrow between rooms is stated, every stated one is there, and none runs in a circle.

A room is a folder of code with one idea. import-linter reads the table in pyproject.toml and runs this beside the
contracts that it brings itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class RoomsContract(Contract):
    """Its option `arrows` has one line a room: "room -> room, room"."""

    arrows = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        stated = dict(_parsed(line) for line in self.arrows)
        found: dict[str, dict[str, list[str]]] = {room: {} for room in stated}
        for importer, imported in _imports(graph):
            source, target = _room(importer, stated), _room(imported, stated)
            if source is not None and target is not None and source != target:
                found[source].setdefault(target, []).append(f"{importer} -> {imported}")
        unstated = [
            f"{source} -> {target}, which no line states: {', '.join(imports)}"
            for source, targets in found.items()
            for target, imports in targets.items()
            if target not in stated[source]
        ]
        gone = [
            f"{source} -> {target} is stated, and nothing imports it"
            for source, targets in stated.items()
            for target in targets
            if target not in found[source]
        ]
        problems = [*unstated, *gone, *_circles(stated)]
        return ContractCheck(kept=not problems, metadata={"problems": problems})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for problem in check.metadata["problems"]:
            output.print_error(problem)


def _parsed(line: str) -> tuple[str, tuple[str, ...]]:
    room, _, targets = line.partition("->")
    return room.strip(), tuple(target.strip() for target in targets.split(",") if target.strip())


def _imports(graph: ImportGraph) -> Iterator[tuple[str, str]]:
    for importer in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(importer)):
            yield importer, imported


def _room(module: str, rooms: dict[str, tuple[str, ...]]) -> str | None:
    parts = module.split(".")
    names = (".".join(parts[:size]) for size in range(len(parts), 0, -1))
    return next((name for name in names if name in rooms), None)


def _circles(stated: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Each circle once, told from the room that comes first in it."""
    done: set[str] = set()

    def walk(room: str, path: tuple[str, ...]) -> Iterator[str]:
        if room in path:
            yield "a circle: " + " -> ".join([*path[path.index(room) :], room])
            return
        if room not in done:
            for target in stated.get(room, ()):
                yield from walk(target, (*path, room))
            done.add(room)

    for room in stated:
        yield from walk(room, ())
