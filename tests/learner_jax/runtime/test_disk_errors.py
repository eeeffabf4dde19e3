"""A disk's failure is recognized behind other errors, names its file, and is told of once."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from learner_jax.runtime.disk_errors import at, disk_failure, tell_once

FULL = OSError(errno.ENOSPC, "No space left on device")


def caused(outer: BaseException, *, by: BaseException | None = None, after: BaseException | None = None) -> Exception:
    """`outer` as it comes out of `raise outer from by`, or out of a handler of `after`."""
    try:
        if by is not None:
            raise outer from by
        try:
            raise after or ZeroDivisionError
        except (OSError, ArithmeticError):
            raise outer  # noqa: B904  (the context is what is tested)
    except (RuntimeError, ValueError) as error:
        return error


def hidden(outer: Exception) -> Exception:
    """`outer` as it comes out of `raise outer from None` in a handler of a full disk."""
    try:
        try:
            raise FULL
        except OSError:
            raise outer from None
    except (RuntimeError, ValueError) as error:
        return error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_or_failing_disk_is_found_wherever_it_stands(number: int) -> None:
    failure = OSError(number, "of the disk")
    assert disk_failure(failure) is failure
    assert disk_failure(caused(RuntimeError(), by=failure)) is failure
    assert disk_failure(caused(RuntimeError(), after=failure)) is failure
    assert disk_failure(caused(RuntimeError(), by=caused(RuntimeError(), after=failure))) is failure
    found = disk_failure(ValueError(f"writing: [os_error_code='{number}' ...]"))
    assert found is not None
    assert found.errno == number


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError(),
        OSError(errno.ENOENT, "gone"),
        OSError("without a number"),
        ValueError("[os_error_code='2']"),
        ValueError("no code"),
        RuntimeError(f"[os_error_code='{errno.ENOSPC}']"),
    ],
    ids=repr,
)
def test_other_errors_are_no_disks(error: BaseException | None) -> None:
    assert disk_failure(error) is None


def test_what_an_error_was_not_raised_from_does_not_count() -> None:
    assert disk_failure(hidden(RuntimeError())) is None
    assert disk_failure(caused(RuntimeError(), by=hidden(ValueError()))) is None


def test_a_circle_of_errors_ends() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert disk_failure(one) is None


def test_an_error_without_a_file_gets_its_name() -> None:
    with pytest.raises(OSError, match="No space left") as raised, at("there"):
        raise OSError(errno.ENOSPC, "another text")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "there")


@pytest.mark.parametrize("error", [OSError("without a number"), OSError(errno.ENOSPC, "full", "elsewhere")], ids=repr)
def test_an_error_that_names_its_file_or_has_no_number_stays(error: OSError) -> None:
    with pytest.raises(OSError, match=r".") as raised, at("there"):
        raise error
    assert raised.value is error


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """What reaches the hook that was there before `tell_once`; its filters end with the test."""
    reached: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", reached.append)
    filters = {name: list(logging.getLogger(name).filters) for name in ("absl", "asyncio")}
    tell_once()
    yield reached
    for name, before in filters.items():
        logging.getLogger(name).filters[:] = before


def test_a_closed_loop_is_not_told_of_and_everything_else_is(told: list[object]) -> None:
    def raised(error: Exception) -> SimpleNamespace:
        return SimpleNamespace(exc_type=type(error), exc_value=error)

    others = [raised(RuntimeError("else")), raised(ValueError("Event loop is closed"))]
    for unraisable in (raised(RuntimeError("Event loop is closed")), *others):
        hook: Callable[[object], None] = sys.unraisablehook
        hook(unraisable)
    assert told == others


def test_a_write_that_orbax_gave_up_is_not_told_of_and_other_forgotten_coroutines_are(told: list[object]) -> None:
    async def forgotten() -> None: ...

    given_up, other = forgotten(), forgotten()
    given_up.__qualname__ = "async_serialize_from_host.<locals>.write_fragment"
    del given_up
    assert told == []
    del other
    (unraisable,) = told
    assert "forgotten' was never awaited" in str(getattr(unraisable, "exc_value", None))


@pytest.mark.parametrize("name", ["absl", "asyncio"])
def test_a_traceback_of_a_full_disk_is_not_logged_and_others_are(name: str, told: list[object]) -> None:
    def passes(error: Exception | None) -> bool:
        trace = None if error is None else (type(error), error, None)
        return bool(logging.getLogger(name).filter(logging.LogRecord(name, 40, "", 0, "", (), trace)))

    assert told == []
    assert not passes(FULL)
    assert passes(RuntimeError())
    assert passes(None)
