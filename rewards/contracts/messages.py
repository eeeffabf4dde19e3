"""What an environment tells the policy, and the tools that it declares: plain data, in OpenAI's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_REFERENCES = ("$ref", "$dynamicRef")


@dataclass(frozen=True)
class Message:
    """One thing that the policy is told.

    Attributes:
      content: text; it is never read as special tokens of the model.
      name: of the tool that it comes from; "" for a user's words.
      call_id: names the call that a tool's message answers.
    """

    role: Literal["user", "tool"]
    content: str
    name: str = ""
    call_id: str = ""

    def as_chat(self) -> dict[str, str]:
        """The message as chat templates read it."""
        optional = {"name": self.name, "tool_call_id": self.call_id}
        return {"role": self.role, "content": self.content, **{key: value for key, value in optional.items() if value}}


@dataclass(frozen=True)
class ToolDefinition:
    """What the policy is told of a tool.

    Attributes:
      parameters: JSON schema of an object, which a call's arguments must satisfy.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    def as_chat(self) -> dict[str, Any]:
        """The definition as OpenAI's chat API and chat templates have it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


def schema_fault(schema: Mapping[str, Any]) -> str:
    """Why an object is no JSON schema; empty if it is one.

    Nesting beyond what can be checked is a fault, too, and so is a reference to something that is not in the schema.
    """
    from jsonschema.exceptions import SchemaError  # takes long to import, and most runs have no tools
    from jsonschema.validators import validator_for

    if not isinstance(schema.get("$schema", ""), str):
        return f"$schema is {schema['$schema']!r:.100}, expected text"
    try:
        validator_for(dict(schema)).check_schema(dict(schema))
        return _dangling(schema)
    except SchemaError as error:
        return f"{error.message[:200]}"
    except RecursionError:
        return "it is nested too deeply to be checked"


def _dangling(schema: Mapping[str, Any]) -> str:
    """Which reference of a schema leads nowhere; empty if there is none."""
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    root = Resource.from_contents(schema, default_specification=DRAFT202012)
    waiting = [(root, Registry[Any]().resolver_with_root(root))]
    while waiting:
        part, resolver = waiting.pop()
        references = [part.contents.get(key) for key in _REFERENCES] if isinstance(part.contents, Mapping) else []
        for reference in filter(None, references):
            try:
                resolver.lookup(reference)
            except Unresolvable:
                return f"it refers to {reference!r:.100}, which is not in it"
        waiting.extend((inner, resolver.in_subresource(inner)) for inner in part.subresources())
    return ""
