"""The few things that tests of functions take from pytest, which the sandbox has not."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_RELATIVE, _ABSOLUTE = 1e-6, 1e-12


class raises:  # noqa: N801  (pytest's name)
    """`with raises(ValueError, match="..."):` holds where the block raises such an exception."""

    def __init__(self, expected: Any, match: str | None = None) -> None:
        self._expected, self._match = expected, match
        self.value: BaseException | None = None

    def __enter__(self) -> raises:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        if error is None:
            raise AssertionError("nothing was raised")
        if not isinstance(error, self._expected):
            return False
        if self._match is not None:
            import re

            assert re.search(self._match, str(error)), f"{error} does not match"
        self.value = error
        return True


class approx:  # noqa: N801  (pytest's name)
    """Equals a number, or numbers in a list, tuple or dict, within a tolerance."""

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None) -> None:  # noqa: A002
        self._expected, self._rel, self._abs = expected, rel, abs

    def __eq__(self, got: object) -> bool:
        return self._same(got, self._expected)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"approx({self._expected!r})"

    def _same(self, got: Any, expected: Any) -> bool:
        if isinstance(expected, (list, tuple)):
            pairs = isinstance(got, (list, tuple)) and len(got) == len(expected)
            return pairs and all(self._same(one, other) for one, other in zip(got, expected, strict=True))
        if isinstance(expected, dict):
            pairs = isinstance(got, dict) and got.keys() == expected.keys()
            return pairs and all(self._same(got[key], other) for key, other in expected.items())
        if type(got) not in (int, float, bool) or not isinstance(expected, (int, float)):
            return type(got) is type(expected) and bool(got == expected)
        # As pytest has it: an absolute tolerance that is given alone leaves no relative one.
        relative = self._rel if self._rel is not None else 0.0 if self._abs is not None else _RELATIVE
        tolerance = max(relative * (expected if expected >= 0 else -expected), self._abs or _ABSOLUTE)
        difference = got - expected
        return bool(got == expected or -tolerance <= difference <= tolerance)


def fail(reason: str = "") -> None:
    raise AssertionError(reason)


class _Mark:
    """`@mark.anything(...)` leaves a test as it is."""

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: given[0] if len(given) == 1 and callable(given[0]) else lambda test: test


mark = _Mark()
