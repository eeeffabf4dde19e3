"""Shows the data of a run before it starts: counts, columns, lengths, what stands twice, and the first prompts.

    python -m tools.data --config config.toml
    python -m tools.data --config config.toml --prompts 20 --near 0      (more prompts; no search for near duplicates)
    python -m tools.data --config config.toml --json                     (for programs)

Nothing is started. Exit status 1 if a run with these data would fail, which is said as `tools.train` says it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

from configs.load import load_config
from learner_jax.runtime import printable
from tools.assembly import DataSurvey, clear_errors, config_arguments, run_paths, subject_of, survey_data
from tools.command_line import command_parser, print_page

_LOOKED_AT, _COMPARED, _PROMPTS = 100_000, 20_000, 3
_MAX_SHOWN = 2000
_FAILED_STATUS = 1


def shown(found: DataSurvey) -> Iterator[str]:
    """The survey for a person, a line each; text of the data is escaped."""
    yield from _sources(found)
    yield from _table("lengths", ("split", "looked at", "unit", "least", "median", "95%", "most"), [
        (split, one.looked_at, one.unit, one.least, one.median, one.percentile_95, one.most)
        for split, one in found.lengths.items()
    ])  # fmt: skip
    if found.no_tokenizer:
        yield f"  in characters, since there is no tokenizer: {found.no_tokenizer}"
    yield from _near(found)
    for number, prompt in enumerate(found.prompts, start=1):
        cut = f" ... ({len(prompt)} characters)" if len(prompt) > _MAX_SHOWN else ""
        yield f"\n# prompt {number}"
        yield from (f"  {line}" for line in f"{prompt[:_MAX_SHOWN]}{cut}".split("\n"))
    yield "\n# findings"
    for finding in found.findings:
        yield f"  {finding.severity:<8} {finding}"
    if not found.findings:
        yield "  none"


def _sources(found: DataSurvey) -> Iterator[str]:
    for source in found.sources:
        name = f" {source.label}, {source.share:.1%} of prompts" if source.label else ""
        yield f"\n# source{name}"
        yield f"  {source.version}"
        for split, (origin, rows) in source.files.items():
            yield f"  {split:<11} {rows} rows of {origin}"
        counts = {split: "without end" if count is None else count for split, count in source.problems.items()}
        yield f"  problems    {', '.join(f'{count} {split}' for split, count in counts.items())}"
        yield f"  repeated    {source.repeated_rows} train rows have the question of an earlier one"
        yield from _table("columns", ("column", "types", "missing", "longest text"), [
            (name, ", ".join(f"{count} {kind}" for kind, count in one.types.items()), one.missing, one.longest)
            for name, one in source.columns.items()
        ])  # fmt: skip


def _near(found: DataSurvey) -> Iterator[str]:
    yield "\n# nearly the same"
    for one in found.near:
        where = "an earlier one" if one.split == one.other else f"a {one.other} one"
        yield f"  {one.number} of {one.looked_at} {one.split} questions are nearly the same as {where}"
        for first, other, similarity in one.examples:
            yield f"    {similarity:.2f}  {first[:90]!r}  ~  {other[:90]!r}"
    if not found.near:
        yield "  none"


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    cells = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    yield f"\n# {title}"
    for row in cells:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("data", __doc__)
    config_arguments(parser)
    parser.add_argument("--rows", type=_count, default=_LOOKED_AT, metavar="N", help="look at N rows of each split")
    parser.add_argument("--near", type=_count, default=_COMPARED, metavar="N", help="compare N questions of each split")
    parser.add_argument("--prompts", type=_count, default=_PROMPTS, metavar="N", help="show the first N prompts")
    parser.add_argument("--json", action="store_true", help="print an object")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text[:50]!a}")
    return int(text)


def main() -> None:
    arguments = _parser().parse_args()
    with clear_errors():
        config = load_config(arguments.config, arguments.overrides)
        print("reading the data ...", file=sys.stderr)
        with subject_of(config, run_paths(config), None) as subject:
            found = survey_data(subject, most=arguments.rows, most_near=arguments.near, num_prompts=arguments.prompts)
        if arguments.json:
            print_page(json.dumps(found.as_fields(), indent=1))
        else:
            print_page("\n".join(printable(line, keep_lines=True) for line in shown(found)).lstrip())
    raise SystemExit(_FAILED_STATUS if found.errors else 0)


if __name__ == "__main__":
    main()
