"""Objects of the answer as the tests see them: each operation is done in the answer's process, by its own rules.

An object of the answer's own class never equals plain data, and is given none to compare itself with: it would learn
what is expected, and could agree. Nor is it asked as if it were a text or a set. Objects of a class that the tests name
are compared with each other by that class's own methods: such tests believe it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Owner(Protocol):
        """Where the objects are."""

        def operate(self, name: str, subject: Remote, *operands: Any) -> Any: ...

        def iterate(self, subject: Remote) -> Any: ...

        def call(self, function: Remote, arguments: Any, named: Any) -> Any: ...

        def many(self, iterator: Remote, number: int) -> tuple[list[Any], BaseException | None]: ...

        def is_named(self, remote: Remote) -> bool: ...


_MAX_BATCH = 1024
_DUNDERS = ("__name__", "__doc__", "__dict__")
#: methods of texts and collections by which a test asks whether a result is what it expects
_MEASURES = frozenset(
    {"startswith", "endswith", "count", "index", "find", "rfind", "rindex", "replace", "strip", "lstrip", "rstrip"}
    | {"removeprefix", "removesuffix", "split", "rsplit", "partition", "rpartition", "join", "translate"}
    | {"issubset", "issuperset", "isdisjoint", "difference", "symmetric_difference", "intersection", "union"}
    | {"compare", "equals", "fullmatch", "match"}
)


class Remote:
    """A handle to an object in the answer's process."""

    __slots__ = ("_weir_class", "_weir_items", "_weir_number", "_weir_owner", "_weir_raises")

    def __init__(self, owner: Owner, number: int, class_name: str) -> None:
        set_own = object.__setattr__
        set_own(self, "_weir_owner", owner)
        set_own(self, "_weir_number", number)
        set_own(self, "_weir_class", class_name)
        set_own(self, "_weir_items", [])
        set_own(self, "_weir_raises", (1, None))

    def __getattr__(self, name: str) -> Any:
        if name[:2] == "__" and name not in _DUNDERS:
            raise AttributeError(name)
        if name in _MEASURES and not self._weir_owner.is_named(self):
            raise AttributeError(f"{self._weir_class!r} is no plain value and has no {name!r}")
        return self._weir_owner.operate("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._weir_owner.operate("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._weir_owner.operate("delattr", self, name)

    def __iter__(self) -> Any:
        return self._weir_owner.iterate(self)

    def __next__(self) -> Any:
        if not self._weir_items:
            number, raised = self._weir_raises
            if raised is None:
                items, raised = self._weir_owner.many(self, number)
                object.__setattr__(self, "_weir_items", items[::-1])
                object.__setattr__(self, "_weir_raises", (min(2 * number, _MAX_BATCH), raised))
            if not self._weir_items:
                object.__setattr__(self, "_weir_raises", (1, None))
                raise StopIteration if raised is None else raised
        return self._weir_items.pop()

    def __getitem__(self, key: Any) -> Any:
        return self._weir_owner.operate("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._weir_owner.operate("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._weir_owner.operate("delitem", self, key)

    def __len__(self) -> int:
        return _exact(int, self._weir_owner.operate("len", self))

    def __bool__(self) -> bool:
        return _exact(bool, self._weir_owner.operate("bool", self))

    def __str__(self) -> str:
        return _exact(str, self._weir_owner.operate("str", self))

    def __repr__(self) -> str:
        return _exact(str, self._weir_owner.operate("repr", self))

    def __format__(self, form: str) -> str:
        return _exact(str, self._weir_owner.operate("format", self, form))

    def __hash__(self) -> int:
        return hash(("remote", self._weir_number))

    def __contains__(self, item: Any) -> bool:
        if self._weir_owner.is_named(self):
            return _exact(bool, self._weir_owner.operate("contains", self, item))
        return any(item is one or item == one for one in self)

    def __instancecheck__(self, thing: Any) -> bool:
        return isinstance(thing, Remote) and _exact(bool, self._weir_owner.operate("isinstance", thing, self))

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Remote) or not _both_named(self, other):
            return self is other
        return _exact(bool, self._weir_owner.operate("eq", self, other))

    def __ne__(self, other: object) -> bool:
        if self is other or not isinstance(other, Remote) or not _both_named(self, other):
            return self is not other
        return _exact(bool, self._weir_owner.operate("ne", self, other))

    def __enter__(self) -> Any:
        return self._weir_owner.operate("getattr", self, "__enter__")()

    def __exit__(self, *raised: Any) -> bool:
        return bool(self._weir_owner.operate("getattr", self, "__exit__")(None, None, None))


class RemoteFunction(Remote):
    """A handle to something that can be called."""

    __slots__ = ()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._weir_owner.call(self, arguments, named)


def _both_named(one: Remote, other: Remote) -> bool:
    return one._weir_owner.is_named(one) and other._weir_owner.is_named(other)


def _exact(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _between(name: str) -> Any:
    """An operator between two objects of named classes."""

    def operator(self: Remote, other: Any) -> Any:
        if isinstance(other, Remote) and _both_named(self, other):
            return self._weir_owner.operate(name, self, other)
        return NotImplemented

    return operator


def _alone(name: str) -> Any:
    """An operator on one object of a named class."""

    def operator(self: Remote, *arguments: Any) -> Any:
        if not self._weir_owner.is_named(self):
            raise TypeError(f"bad operand type for {name}: {self._weir_class!r}")
        return self._weir_owner.operate(name, self, *arguments)

    return operator


def _scaled(self: Remote, factor: Any) -> Any:
    """A product with a plain number, which has to be an object again."""
    if isinstance(factor, Remote):
        return self._weir_owner.operate("mul", self, factor) if _both_named(self, factor) else NotImplemented
    if not self._weir_owner.is_named(self):
        return NotImplemented
    value = self._weir_owner.operate("mul", self, factor)
    return value if isinstance(value, Remote) else NotImplemented


for _name in (
    "lt",
    "le",
    "gt",
    "ge",
    "add",
    "sub",
    "truediv",
    "floordiv",
    "mod",
    "matmul",
    "pow",
    "and_",
    "or_",
    "xor",
):
    setattr(Remote, f"__{_name.rstrip('_')}__", _between(_name))
for _name in ("neg", "pos", "abs", "invert", "round", "int", "float"):
    setattr(Remote, f"__{_name}__", _alone(_name))
setattr(Remote, "__mul__", _scaled)  # noqa: B010  (as those above)
