"""The answer's process: loads what the model wrote, and does what the tests' process asks of it.

Nothing here is a secret and nothing here is trusted: the answer shares this interpreter and may take it over. It then
chooses what its functions return, which it does anyway. It can't learn what is expected of them.
"""

from __future__ import annotations

import _operator
import builtins
import io
import marshal
import os
import sys
import time
from types import ModuleType

from rewards.code.guest import text
from rewards.code.guest.link import receive, send
from rewards.code.guest.values import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_MAX_FRAME_BYTES = 64 << 20
_MAX_PRINTED_BYTES = 64 << 10
_MAX_TEXT = 300
_BATCH_S = 0.01
_NAME = "answer"


class _Printed(io.BytesIO):
    """Keeps the beginning of what is printed."""

    def write(self, data: Any, /) -> int:
        if self.tell() < _MAX_PRINTED_BYTES:
            super().write(bytes(data)[:_MAX_PRINTED_BYTES])
        return len(data)

    def take(self) -> str:
        printed = self.getvalue().decode("utf-8", "replace")
        self.seek(0)
        self.truncate()
        return printed


class _Function:
    """A function of the tests, which is called in their process."""

    def __init__(self, server: _Server, number: int) -> None:
        self._server, self._number = server, number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._server.call_back(self._number, arguments, named)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Function) and other._number == self._number

    def __hash__(self) -> int:
        return self._number


class _Server:
    def __init__(self, receiving: int, sending: int) -> None:
        self._receiving, self._sending = receiving, sending
        self.objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._module = ModuleType(_NAME)
        self._printed = _Printed()
        sys.modules[_NAME] = self._module
        sys.stdout = io.TextIOWrapper(self._printed, "utf-8", errors="replace", write_through=True)

    def serve(self) -> NoReturn:
        while True:
            self._answer(receive(self._receiving, _MAX_FRAME_BYTES))

    def call_back(self, number: int, arguments: Any, named: Any) -> Any:
        """Asks the tests' process to call one of its functions."""
        content = [self._encode(list(arguments)), self._encode(named)]
        self._send({"callback": number, "arguments": content})
        while True:
            frame = receive(self._receiving, _MAX_FRAME_BYTES)
            order, _, values = self._read(frame)
            if order == "returned":
                return values[0]
            if order == "raised":
                raise values[0]
            self._answer(frame)

    def _answer(self, frame: bytes) -> None:
        reply: dict[str, Any]
        try:
            order, target, values = self._read(frame)
            subject = None if target is None else self.objects[target]
            reply = getattr(self, f"_do_{order}")(frame, subject, *values)
            self._send(reply)
        except BaseException as error:  # noqa: BLE001  (all that an answer raises is told to the tests)
            self._send(self._raised(error))

    def _send(self, reply: dict[str, Any]) -> None:
        if printed := self._printed.take():
            reply["printed"] = printed
        send(self._sending, text.dumps(reply))

    def _read(self, frame: bytes) -> tuple[str, int | None, tuple[Any, ...]]:
        """Order, number of the object that it is about, and values, which come pickled if they are not all plain."""
        if frame[:1] == b"m":
            return marshal.loads(frame[1:])
        import _pickle

        pickled = _pickle.Unpickler(io.BytesIO(frame[1:]))
        pickled.persistent_load = self._load_handle  # type: ignore[method-assign]
        return pickled.load()

    def _load_handle(self, key: Any) -> Any:
        kind, number = key
        return self.objects[number] if kind == "r" else _Function(self, number)

    def _raised(self, error: BaseException) -> dict[str, Any]:
        kind = type(error)
        base = next((c for c in kind.__mro__ if c.__module__ == "builtins"), Exception)
        try:
            said = str(error)[:_MAX_TEXT]
            arguments = self._encode(list(error.args))
        except BaseException:  # noqa: BLE001  (an exception whose own methods raise has no text)
            said, arguments = "", self._encode([])
        own = "" if kind is base else str(kind.__name__)
        return {"raised": [own, base.__name__, said, arguments]}

    # What the tests' process may ask for: each takes the frame it came in, and gives the reply.

    def _do_load(self, frame: bytes, _: None, code: str) -> dict[str, Any]:
        names = vars(self._module)
        exec(compile(code, f"<{_NAME}>", "exec", dont_inherit=True), names)
        return {"names": {name: self._kind(value) for name, value in list(names.items()) if name[:2] != "__"}}

    def _kind(self, value: Any) -> Any:
        if isinstance(value, ModuleType):
            return ["module", value.__name__]
        if isinstance(value, type) and issubclass(value, BaseException):
            base = next(kind for kind in value.__mro__ if kind.__module__ == "builtins")
            return ["exception", value.__name__, base.__name__]
        if isinstance(value, type):
            return ["class", self._remember(value, None)]
        return ["function", self._remember(value, None)] if callable(value) else ["value"]

    def _do_value(self, frame: bytes, _: None, name: str) -> dict[str, Any]:
        return {"value": self._encode(vars(self._module)[name])}

    def _do_call(self, frame: bytes, function: Any, arguments: Any, named: Any) -> dict[str, Any]:
        value = function(*arguments, **named)
        given = [*arguments, *named.values()]
        _, _, (sent_arguments, sent_named) = self._read(frame)
        sent = [*sent_arguments, *sent_named.values()]
        changed = [
            [i, self._encode(now)] for i, (now, was) in enumerate(zip(given, sent, strict=True)) if _differs(now, was)
        ]
        returned = next((i for i, argument in enumerate(given) if argument is value and _is_mutable(value)), None)
        if returned is not None:
            return {"argument": returned, "changed": changed}
        return {"value": self._encode(value), "changed": changed}

    def _do_operate(self, frame: bytes, subject: Any, name: str, operands: Any) -> dict[str, Any]:
        function: Callable[..., Any] = getattr(_operator, name, None) or getattr(builtins, name)
        return {"value": self._encode(function(subject, *operands))}

    def _do_iterate(self, frame: bytes, subject: Any) -> dict[str, Any]:
        return {"value": self._remember(iter(subject), None)}

    def _do_many(self, frame: bytes, iterator: Any, number: int) -> dict[str, Any]:
        """Up to `number` items of an iterator: fewer where they take long, or it ends."""
        items: list[Any] = []
        until = time.monotonic() + _BATCH_S
        try:
            while len(items) < number and (not items or time.monotonic() < until):
                items.append(self._encode(next(iterator)))
        except BaseException as error:  # noqa: BLE001  (told to the tests, after the items)
            return {"items": items, **self._raised(error)}
        return {"items": items}

    def _encode(self, value: Any) -> Any:
        return encode(value, self._remember)

    def _remember(self, value: Any, plain: Any) -> Any:
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        about = {"number": number, "class": type(value).__name__, "callable": callable(value)}
        return ["r", about, plain]


def _is_mutable(value: Any) -> bool:
    return isinstance(value, (list, dict, set, bytearray)) or type(value).__module__ == "collections"


def _differs(now: Any, was: Any) -> bool:
    return _is_mutable(now) and (type(now) is not type(was) or bool(now != was))


def serve(receiving: int, sending: int) -> NoReturn:
    """Loads the answer and calls its functions, until this process is killed."""
    try:
        _Server(receiving, sending).serve()
    finally:
        os._exit(1)


def run_program(code: str, arguments: list[str]) -> NoReturn:
    """Runs a program as Python's command line does, on descriptors 0 to 2."""
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = arguments
    module = sys.modules["__main__"] = ModuleType("__main__")
    status = 1
    try:
        exec(compile(code, "<answer>", "exec", dont_inherit=True), vars(module))
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException as error:  # noqa: BLE001  (a program's exception is its status)
        print(f"{type(error).__name__}: {error}"[:_MAX_TEXT], file=sys.stderr, flush=True)
    _end(status)


def _end(status: int) -> NoReturn:
    """Waits for threads, and does what was registered for the end."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        import atexit

        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001  (the program's status is known already)
        status = status or 1
    finally:
        os._exit(status & 255)
