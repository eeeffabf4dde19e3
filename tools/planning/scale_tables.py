"""The tables of a scale plan, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from tools.planning.scale import Load, Plan
from tools.planning.scale_inputs import ScaleInputs
from tools.planning.scale_published import Published

_NUM_LIMITS = 3


@dataclass(frozen=True)
class Rows:
    """A table; columns from `first_number` on hold numbers, up to `last_number`."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: range

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        for index, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if index in self.numbers else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        aligned = ("---:" if index in self.numbers else "---" for index in range(len(self.headings)))
        lines = (" | ".join(cells) for cells in (self.headings, tuple(aligned), *self.rows))
        return "\n".join([f"**{self.title}**", "", *(f"| {line} |" for line in lines)])


def all_tables(plans: Sequence[Plan], published: Sequence[Published]) -> list[Rows]:
    """A summary, the loads of every model, and the predictions beside published figures."""
    names = dict.fromkeys(plan.name for plan in plans)
    of_models = [loads([plan for plan in plans if plan.name == name]) for name in names]
    return [summary(plans), *of_models, predictions(published)]


def summary(plans: Sequence[Plan]) -> Rows:
    """One line for each model and number of GPUs."""
    headings = (
        "model",
        "GPUs",
        "to learn",
        "replicas",
        "answers on each",
        "s a step",
        "paced",
        "in time",
        "first limits",
    )
    return Rows("Division, step and first limits", headings, tuple(map(_summary_row, plans)), range(1, 8))


def _summary_row(plan: Plan) -> tuple[str, ...]:
    if not plan.fits:
        return (
            plan.name,
            str(plan.num_gpus),
            "-",
            "-",
            "-",
            "-",
            "-",
            "-",
            "memory: the learner and one replica don't fit",
        )
    limits = "; ".join(f"{load.name} {load.share:.2f}" for load in plan.limits[:_NUM_LIMITS])
    return (
        plan.name,
        str(plan.num_gpus),
        str(plan.learner_gpus),
        f"{plan.replicas} x {plan.replica_gpus}",
        f"{plan.per_replica:.0f}",
        _seconds(plan.step_s),
        _seconds(plan.paced_step_s),
        f"{plan.in_time:,.0f}",
        limits,
    )


def loads(plans: Sequence[Plan]) -> Rows:
    """All loads of one model, by number of GPUs."""
    fitting = [plan for plan in plans if plan.fits]
    headings = ("load", *(f"{plan.num_gpus} GPUs" for plan in fitting), "less by")
    rows = tuple(_load_rows(fitting)) if fitting else ()
    return Rows(f"{plans[0].name}: loads", headings, rows, range(1, 1 + len(fitting)))


def _load_rows(plans: Sequence[Plan]) -> Iterator[tuple[str, ...]]:
    by_name: list[dict[str, Load]] = [{load.name: load for load in plan.loads} for plan in plans]
    for load in plans[-1].loads:
        yield load.name, *(f"{loads[load.name].share:.3f}" for loads in by_name), load.removed_by


def predictions(published: Sequence[Published]) -> Rows:
    """Ours beside published figures."""
    rows = tuple(
        (
            item.source,
            item.model,
            str(item.gpus),
            item.work,
            f"{item.published:,.4g} {item.unit}" if item.published < 1000 else f"{item.published:,.0f} {item.unit}",
            f"{item.predicted:,.4g}" if item.predicted < 1000 else f"{item.predicted:,.0f}",
            f"{item.ratio:.2f}",
        )
        for item in published
    )
    headings = ("source", "model", "GPUs", "tokens", "published", "this plan", "ratio")
    return Rows("Predictions beside published figures", headings, rows, range(4, 7))


def inputs_table(inputs: ScaleInputs) -> Rows:
    """Every input with its value and where it comes from."""
    rows = []
    for part, settings in inputs:
        for name, field in type(settings).model_fields.items():
            value = getattr(settings, name)
            rows.append(
                (f"{part}.{name}", f"{value:.4g}" if isinstance(value, float) else str(value), field.description or "")
            )
    return Rows("Inputs", ("input", "value", "what, and from where"), tuple(rows), range(1, 2))


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"
