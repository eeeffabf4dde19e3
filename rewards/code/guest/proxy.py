"""The answer's names, as the tests use them: functions, classes, modules and values of another process."""

from __future__ import annotations

import builtins
import io
import marshal
import sys
from types import FunctionType, GeneratorType, MethodType, ModuleType

from rewards.code.guest.process import AnswerProcess, Died
from rewards.code.guest.remote import Remote, RemoteFunction
from rewards.code.guest.values import Malformed, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: the module that the tests are
TESTS = "tests"
#: names by which tests may import the answer
MODULES = ("answer", "solution")
#: what tests compare with: never the answer's unless they import it by its name
NEVER_BY_STAR = (
    "isclose",
    "fabs",
    "floor",
    "ceil",
    "isnan",
    "Counter",
    "OrderedDict",
    "defaultdict",
    "deque",
    "approx",
)
_MAX_ITEMS = 1_000_000
_MAX_CALLBACKS = 100_000


class Uncrossable(Exception):
    """A test hands the answer an object that only its own process can hold: it can't be judged here."""


class Answer:
    """The answer's functions and objects; implements `rewards.code.guest.remote.Owner`.

    Args:
      named: classes that the tests name, of which objects may be compared by their own methods.
    """

    def __init__(self, process: AnswerProcess, named: set[str]) -> None:
        self._process = process
        self._named = named
        self._remotes: dict[int, Remote] = {}
        self._exceptions: dict[tuple[str, str], type[BaseException]] = {}

    def load(self, source: str) -> dict[str, Any]:
        """Runs source in the answer's module; returns kind and content of each of its names."""
        reply = self._ask("load", None, source)
        names = reply.get("names")
        if not isinstance(names, dict):
            raise Malformed("the answer's names are no names")
        return {
            name: entry
            for name, entry in names.items()
            if name.isidentifier() and name[:2] != "__" and isinstance(entry, list) and entry
        }

    def name(self, name: str, entry: list[Any]) -> Any:
        """What a name of the answer stands for in the tests."""
        match entry:
            case ["module", str() as module] if module in sys.stdlib_module_names:
                return __import__(module)
            case ["exception", str() as own, str() as base]:
                return self._exception(own, base)
            case ["function" | "class", handle]:
                return decode(handle, self._recall)
            case ["value"]:
                return self._value(self._ask("value", None, name))
        raise AttributeError(f"the answer's {name}")

    def is_named(self, remote: Remote) -> bool:
        return remote._weir_class in self._named

    def operate(self, name: str, subject: Remote, *operands: Any) -> Any:
        return self._value(self._ask("operate", subject, name, operands))

    def iterate(self, subject: Remote) -> Any:
        return self._value(self._ask("iterate", subject))

    def many(self, iterator: Remote, number: int) -> tuple[list[Any], BaseException | None]:
        reply = self._exchange("many", iterator, number)
        items = reply.get("items", [])
        raised = reply.get("raised")
        decoded = [decode(item, self._recall) for item in items]
        if raised is None and not decoded:
            raise Malformed("an iterator gave nothing")
        return decoded, None if raised is None else self._error(raised)

    def call(self, function: Remote, arguments: Any, named: Any) -> Any:
        given = [*arguments, *named.values()]
        reply = self._ask("call", function, arguments, named)
        for entry in reply.get("changed", []):
            _change(given, entry, self._recall)
        if "argument" in reply:
            return given[reply["argument"]]
        return self._value(reply)

    def _ask(self, order: str, subject: Remote | None, *values: Any) -> dict[str, Any]:
        reply = self._exchange(order, subject, *values)
        if "raised" in reply:
            raise self._error(reply["raised"])
        return reply

    def _exchange(self, order: str, subject: Remote | None, *values: Any) -> dict[str, Any]:
        functions: list[Any] = []
        if not self._process.is_running:
            raise Died("the answer's process has ended")
        reply = self._process.ask(_dumped(order, subject, values, functions))
        for _ in range(_MAX_CALLBACKS):
            printed = reply.get("printed")
            if isinstance(printed, str):
                sys.stdout.write(printed)
            if "callback" not in reply:
                return reply
            reply = self._process.ask(self._called(reply, functions))
        raise Malformed(f"more than {_MAX_CALLBACKS} calls of one function")

    def _called(self, request: dict[str, Any], functions: list[Any]) -> bytes:
        number, content = request["callback"], request.get("arguments")
        if type(number) is not int or not 0 <= number < len(functions) or not isinstance(content, list):
            raise Malformed("a call of a function that was not handed over")
        arguments, named = (decode(part, self._recall) for part in content)
        try:
            return _dumped("returned", None, (functions[number](*arguments, **named),), functions)
        except (Died, Malformed, Uncrossable):
            raise
        except Exception as error:  # noqa: BLE001  (the tests' own function raised: the answer gets it)
            return _dumped("raised", None, (_builtin(error),), functions)

    def _value(self, reply: dict[str, Any]) -> Any:
        if "value" not in reply:
            raise Malformed("a reply without a value")
        return decode(reply["value"], self._recall)

    def _recall(self, handle: Any, plain: Any) -> Any:
        number, name = handle["number"], handle["class"]
        if type(number) is not int or type(name) is not str:
            raise Malformed("a handle that is none")
        if plain is not None and name not in self._named:
            return plain
        known = self._remotes.get(number)
        if known is None or known._weir_class != name:
            kind = RemoteFunction if handle["callable"] is True else Remote
            known = self._remotes[number] = kind(self, number, name)
        return known

    def _error(self, raised: Any) -> BaseException:
        try:
            own, base, text, arguments = raised
            kind = self._exception(own, base)
            decoded = decode(arguments, self._recall)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Malformed("an exception that is none") from None
        try:
            return kind(*decoded)
        except Exception:  # noqa: BLE001  (one that wants other arguments)
            return RuntimeError(f"{own or base}: {text}")

    def _exception(self, own: str, base: str) -> type[BaseException]:
        kind = getattr(builtins, base, None)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise Malformed("an exception of no such kind")
        if not own:
            return kind
        known = self._exceptions.get((own, base))
        if known is None:
            known = self._exceptions[own, base] = type(own, (kind,), {})
        return known


def _dumped(order: str, subject: Remote | None, values: tuple[Any, ...], functions: list[Any]) -> bytes:
    message = (order, None if subject is None else subject._weir_number, values)
    try:
        return b"m" + marshal.dumps(message)
    except ValueError:  # something in it is no plain data
        return b"p" + _pickled(message, functions)


def _pickled(message: Any, functions: list[Any]) -> bytes:
    """Plain data by value; handles as what they stand for; functions of the tests as handles of this side."""
    import _pickle

    class Pickler(_pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return _handle(thing, functions)

        def reducer_override(self, thing: Any) -> Any:
            if type(thing) is GeneratorType:
                items = [item for item, _ in zip(thing, range(_MAX_ITEMS), strict=False)]
                return iter, (items,)
            return NotImplemented

    buffer = io.BytesIO()
    try:
        Pickler(buffer).dump(message)
    except Uncrossable:
        raise
    except (_pickle.PicklingError, TypeError, AttributeError) as error:
        raise TypeError(f"the answer can't be given what a test hands over: {error}") from None
    return buffer.getvalue()


def _handle(thing: Any, functions: list[Any]) -> Any:
    if isinstance(thing, Remote):
        return ("r", thing._weir_number)
    kind = type(thing)
    if kind in (FunctionType, MethodType) and thing.__module__ == TESTS:
        functions.append(thing)
        return ("c", len(functions) - 1)
    if kind.__module__ == TESTS or (isinstance(thing, type) and thing.__module__ == TESTS):
        name = thing.__name__ if isinstance(thing, type) else kind.__name__
        raise Uncrossable(f"a test hands over an object of its own class {name}")
    return None


def _builtin(error: Exception) -> Exception:
    """An exception as one of Python's own: the answer's process has no other classes of this one."""
    kind = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    return kind(*(a for a in error.args if isinstance(a, (str, int, float))))


def _change(given: list[Any], entry: Any, recall: Any) -> None:
    """Does to an argument what the answer did to its copy."""
    try:
        index, data = entry
        mine, now = given[index], decode(data, recall)
    except (ValueError, TypeError, IndexError):
        raise Malformed("a changed argument that is none") from None
    if isinstance(mine, (list, bytearray)) and isinstance(now, (list, bytearray)):
        mine[:] = now
    elif isinstance(mine, (dict, set)) and isinstance(now, (dict, set)):
        mine.clear()
        mine.update(now)
    elif type(mine).__name__ == "deque" and type(now) is type(mine):
        mine.clear()
        mine.extend(now)


def module(names: dict[str, Any], name: str) -> ModuleType:
    """The answer as a module that tests can import; by `*` they get no name that Python itself has."""
    made = ModuleType(name)
    vars(made).update(names)
    own = [own for own in names if not hasattr(builtins, own) and own not in sys.stdlib_module_names]
    vars(made)["__all__"] = [name for name in own if name not in NEVER_BY_STAR]
    return made
