"""One metric: its name, unit and meaning, and the field of which event it is read from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["gauge", "counter", "state"]
Labels = tuple[str, ...]

#: stands for the keys of a mapping, which become a label's values
EACH = "*"
#: an event of this name stands for all of them
ANY_EVENT = "*"


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    Attributes:
      name: as Prometheus sees it.
      kind: a gauge is the newest value; a counter adds values up; a state is 1 for the text that the field holds.
      unit: of the value, in words.
      event: name of the event; `ANY_EVENT` for all.
      field: dotted path into the event; `EACH` stands for every key there. Empty: counts events.
      labels: names of the labels, `by` first, then one for `EACH`, or for the text of a state.
      by: fields of the event whose texts are label values.
      largest: the field is a list of mappings; the value is the largest of this key, 0 for an empty list.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    event: str
    field: str = ""
    labels: Labels = ()
    by: tuple[str, ...] = ()
    largest: str = ""

    def samples(self, event: Mapping[str, Any]) -> Iterator[tuple[tuple[object, ...], float]]:
        """(label values, value) of an event; fields that are not there, or hold no finite number, give none."""
        by = tuple(event.get(name) for name in self.by)
        if not self.field:
            yield by, 1.0
        elif self.kind == "state":
            state = event.get(self.field)
            yield (*by, state.replace(" ", "_") if isinstance(state, str) else state), 1.0
        elif self.largest:
            rows = event.get(self.field)
            rows = rows if isinstance(rows, list) else []
            values = [_number(row.get(self.largest)) for row in rows if isinstance(row, Mapping)]
            yield by, max((value for value in values if value is not None), default=0.0)
        else:
            for keys, value in _found(event, self.field.split(".")):
                if (number := _number(value)) is not None:
                    yield (*by, *keys), number


def _found(value: Any, path: list[str]) -> Iterator[tuple[tuple[object, ...], Any]]:
    """(keys that `EACH` stood for, value) at the end of a path."""
    if not path:
        yield (), value
        return
    if not isinstance(value, Mapping):
        return
    first, rest = path[0], path[1:]
    if first != EACH:
        yield from _found(value.get(first), rest)
        return
    for key, item in value.items():
        for keys, found in _found(item, rest):
            yield (key, *keys), found


def _number(value: Any) -> float | None:
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None


def gauge(name: str, unit: str, meaning: str, event: str, field: str, *labels: str, by: str = "") -> Metric:
    """A number of the newest event."""
    return Metric(name, "gauge", unit, meaning, event, field, labels, tuple(filter(None, [by])))


def counter(name: str, unit: str, meaning: str, event: str, field: str = "", *labels: str, by: str = "") -> Metric:
    """A sum over events; without a field, their number."""
    return Metric(name, "counter", unit, meaning, event, field, labels, tuple(filter(None, [by])))


def state(name: str, meaning: str, event: str, field: str, *labels: str, by: str = "") -> Metric:
    """1 for the word that the newest event's field says."""
    return Metric(name, "state", "1 for the state that holds", meaning, event, field, labels, tuple(filter(None, [by])))
