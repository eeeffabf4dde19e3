"""Makes small mistakes in Weir's own code, one at a time, and counts which the tests notice.

    python -m tools.testing.mutate [--sample 200] [--seed 0] [--workers 2] [--times JUNIT] [--json FILE [--resume]]
                                   [FOLDER OR MODULE ...]

Mistakes are drawn from the modules named, by default the three packages that a run consists of: each kind of mistake
equally often, so that the many comparisons don't crowd out the few resets. For each the tests of its room run on a
copy of the repository: first those named like its module, then the quickest. Mistakes that change nothing that a test
could see are listed in tests/equivalent_mutations.toml with the reason; they are not drawn.

How long a test may take is known from a run of each room before its first mistake. JUNIT, which pytest wrote with
--junitxml of the suite on this code, saves these runs.

mutmut and cosmic-ray run the whole suite, or one command, for every mutation; here the tests nearest to it run first.

Exit status 1 if fewer than --least of the mistakes were noticed, 2 if the tests fail on the code as it is.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tools.command_line import CommandParser
from tools.reporting import terminal
from tools.testing.mutate.sites import KINDS, Mutation, mutations
from tools.testing.mutate.times import Times
from tools.testing.mutate.trial import Outcome, Tree, TrialError, try_mutation
from tools.testing.suite import ResultsError, read_run

_REPOSITORY = Path(__file__).resolve().parents[3]
_EQUIVALENT = "tests/equivalent_mutations.toml"


def modules(repository: Path, chosen: Sequence[str]) -> list[str]:
    """Paths of Python modules below the chosen files and folders, relative to the repository.

    Raises:
      ValueError: nothing of that name is there.
    """
    found = []
    for name in chosen:
        place = repository / name
        paths = [place] if place.is_file() else sorted(place.rglob("*.py"))
        if not paths:
            raise ValueError(f"expected a module or a folder of modules of this repository, got {name!r}")
        found += [path.relative_to(repository).as_posix() for path in paths if path.name != "__init__.py"]
    return found


def equivalent(repository: Path) -> set[tuple[str, str, str]]:
    """(path, was, now) of the mutations that change nothing that a test could see."""
    path = repository / _EQUIVALENT
    entries = tomllib.loads(path.read_text())["mutation"] if path.exists() else []
    return {(entry["path"], entry["was"], entry["now"]) for entry in entries}


def sample(found: Iterable[Mutation], number: int, seed: int) -> list[Mutation]:
    """So many mutations in random order, of each kind as many as of the others as long as there are any."""
    generator = random.Random(seed)
    by_kind: dict[str, list[Mutation]] = defaultdict(list)
    for mutation in found:
        by_kind[mutation.kind].append(mutation)
    for of_kind in by_kind.values():
        generator.shuffle(of_kind)
    drawn: list[Mutation] = []
    while len(drawn) < number and any(by_kind.values()):
        drawn += [by_kind[kind].pop() for kind in KINDS if by_kind[kind]]
    generator.shuffle(drawn := drawn[:number])
    return drawn


def try_all(
    drawn: Sequence[Mutation],
    repository: Path,
    workers: int,
    done: Callable[[Outcome], None] = lambda outcome: None,
    times: Times | None = None,
) -> list[Outcome]:
    """One outcome for each mutation, as they end; each worker has a copy of the repository.

    Raises:
      TrialError: as `try_mutation`.
    """
    outcomes, trees, known = [], SimpleQueue[Tree](), times or Times()

    def work(mutation: Mutation) -> Outcome:
        tree = trees.get()
        try:
            return try_mutation(mutation, tree, known.seconds)
        finally:
            trees.put(tree)

    with tempfile.TemporaryDirectory(prefix="weir-mutate-") as folder, ThreadPoolExecutor(workers) as pool:
        for number in range(workers):
            place = Path(folder) / f"tree-{number}"
            place.mkdir()
            trees.put(Tree(repository, place))
        try:
            for future in as_completed([pool.submit(work, mutation) for mutation in drawn]):
                outcomes.append(future.result())
                done(outcomes[-1])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return outcomes


def tried_before(path: Path, drawn: Sequence[Mutation]) -> list[Outcome]:
    """Outcomes of the mutations drawn that a file of an earlier run holds; none if there is no file.

    Raises:
      ValueError: a line is no outcome.
    """
    by_mutation = {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), start=1):
        try:
            outcome = Outcome.from_json(json.loads(line))
            by_mutation[outcome.mutation] = outcome
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}, is no mutation that was tried: expected one by --json") from error
    return [by_mutation[mutation] for mutation in drawn if mutation in by_mutation]


def room(path: str) -> str:
    return ".".join(Path(path).parent.parts)


def table(outcomes: Sequence[Outcome], title: str, name: Callable[[Outcome], str]) -> Table:
    tried: Counter[str] = Counter(map(name, outcomes))
    noticed = Counter(name(outcome) for outcome in outcomes if outcome.noticed)
    shown = Table(title, "tried", "noticed", "share")
    for row in sorted(tried):
        shown.add_row(row, str(tried[row]), str(noticed[row]), f"{noticed[row] / tried[row]:.0%}")
    shown.add_row("all", str(tried.total()), str(noticed.total()), f"{noticed.total() / max(tried.total(), 1):.0%}")
    return shown


def main() -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=["learner_jax", "serving_bridge", "rewards"])
    parser.add_argument("--sample", type=int, default=200, help="mutations to draw, default 200")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="copies of the repository, default 2")
    parser.add_argument("--least", type=float, default=0.95, help="share to be noticed, default 0.95")
    parser.add_argument("--times", type=Path, metavar="JUNIT", help="run of the suite on this code, by --junitxml")
    parser.add_argument("--json", type=Path, help="one line for each mutation, written as they end")
    parser.add_argument("--resume", action="store_true", help="leave out what --json holds already, and count it")
    given = parser.parse_args()
    terminal.prepare_streams()
    console = terminal.console()
    try:
        paths = modules(_REPOSITORY, given.modules)
        drawn, known = draw(paths, given.sample, given.seed)
        outcomes = tried_before(given.json, drawn) if given.resume and given.json else []
        times = Times(read_run(given.times) if given.times else None)
    except (ValueError, ResultsError) as error:
        parser.error(str(error))
    console.print(f"{len(drawn)} of {known} mutations of {len(paths)} modules, seed {given.seed}")
    before = {outcome.mutation for outcome in outcomes}
    left = [mutation for mutation in drawn if mutation not in before]
    try:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("mutations", total=len(drawn), completed=len(before))

            def done(outcome: Outcome) -> None:
                bar.advance(task)
                if given.json:
                    with given.json.open("a") as lines:
                        lines.write(json.dumps(outcome.to_json()) + "\n")

            outcomes += try_all(left, _REPOSITORY, given.workers, done, times)
    except TrialError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    return int(told(outcomes, console) > (1 - given.least) * len(outcomes))


def draw(paths: Sequence[str], number: int, seed: int) -> tuple[list[Mutation], int]:
    """Mutations of these modules, and of how many they were drawn."""
    named = equivalent(_REPOSITORY)
    found = [mutation for path in paths for mutation in mutations(path, (_REPOSITORY / path).read_bytes())]
    found = [mutation for mutation in found if (mutation.path, mutation.was, mutation.now) not in named]
    return sample(found, number, seed), len(found)


def told(outcomes: Sequence[Outcome], console: Console) -> int:
    """Shows what became of each kind and room; returns how many were not noticed."""
    console.print(table(outcomes, "kind", lambda outcome: outcome.mutation.kind))
    console.print(table(outcomes, "room", lambda outcome: room(outcome.mutation.path)))
    missed = [outcome.mutation for outcome in outcomes if not outcome.noticed]
    for one in sorted(missed, key=lambda mutation: (mutation.path, mutation.line)):
        console.print(
            f"NOT NOTICED {one.path}:{one.line} {one.kind}: {one.was} -> {one.now}", markup=False, soft_wrap=True
        )
    return len(missed)


if __name__ == "__main__":
    sys.exit(main())
