"""What every table of settings is: immutable, strict about types, and without numbers that no setting can mean."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

#: Steps, sizes and counts go into int32 arrays.
_MAX_INT = 2**31 - 1
#: Three years: the system's timers take not much more.
_MAX_SECONDS = 1e8
_MAX_DIGITS = 30


class Settings(BaseModel):
    """Base of the tables: unknown keys, other types, NaN and infinity are errors.

    A field takes larger integers where it has an upper bound of its own, and infinity where it says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Takes arrays for tuples and whole numbers for floats, as TOML writes them; refuses what is far too large."""
        name = info.field_name or ""
        field = cls.model_fields[name]
        kinds = _kinds(field.annotation)
        if isinstance(value, list) and tuple in kinds:
            value = tuple(value)
        if isinstance(value, tuple):
            return tuple(_number(item, name, field, kinds) for item in value)
        return _number(value, name, field, kinds)


def _number(value: Any, name: str, field: FieldInfo, kinds: set[Any]) -> Any:
    if type(value) is int:
        if abs(value) > _MAX_INT and all(getattr(rule, "le", None) is None for rule in field.metadata):
            raise ValueError(f"expected a number of at most {_MAX_INT}, got {_short(value)}")
        if float in kinds:
            value = float(value) if abs(value) <= _MAX_INT else value
    if type(value) is float and name.endswith("_s") and _MAX_SECONDS < value < float("inf"):
        raise ValueError(f"expected at most {_MAX_SECONDS:.0e} seconds, got {value:g}")
    return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation is made of: {tuple, float, NoneType} of `tuple[float, ...] | None`."""
    found = {annotation, get_origin(annotation)}
    for part in get_args(annotation):
        found |= _kinds(part) if not isinstance(part, str) else set()
    return found


def _short(value: int) -> str:
    """A number that may be too long to be converted to text."""
    return str(value) if value.bit_length() < 3 * _MAX_DIGITS else f"one of {value.bit_length()} bits"
