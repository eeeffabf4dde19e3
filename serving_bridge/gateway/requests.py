"""Requests of OpenAI's API: read once, checked whole, and then plain values. What is sent on is built anew from these.

Unknown fields are refused, as OpenAI does. Fields that are known and would change the answer, but can't be honoured,
are refused by name. Fields that steer OpenAI's own service alone (`user`, `metadata`, `service_tier`, ...) change
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from serving_bridge.gateway.errors import GatewayError, invalid
from serving_bridge.gateway.schemas import check_schema
from serving_bridge.sessions import ChatMessage, SessionError, read_messages, read_tools

#: levels of lists and objects inside each other
MAX_DEPTH = 64
MAX_CHOICES = 16
_MAX_STOPS, _MAX_STOP_CHARACTERS = 16, 256
_MAX_PROMPTS = 64
_MAX_BIASES = 1024
_MAX_TOP_LOGPROBS = 20
_MAX_NAME_CHARACTERS = 100
#: in the metadata of a request: "yes" is as store = true
_CONSENT_KEY = "weir_consent"
_PATH = re.compile(r" - at `\$\.?([^`]*)`\Z")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`")
_MISSING = re.compile(r"Object missing required field `([^`]*)`")

_PROMPT_FORMS = "expected a text, token ids of 0 and above, or a list of either"

_Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Biases = Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=_MAX_BIASES)]
_Word = Annotated[str, Meta(max_length=1024)]
_Metadata = Annotated[dict[_Word, _Word], Meta(max_length=16)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream has beside the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Common(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=256)]
    max_tokens: _Int64 | None = None
    n: _Int64 | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=_MAX_BIASES)] | None = (
        None
    )
    seed: _Int64 | None = None
    stop: str | Annotated[list[str], Meta(max_length=_MAX_STOPS)] | None = None
    user: _Word | None = None


class ChatRequest(_Common):
    """Body of POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: _Int64 | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=_MAX_TOP_LOGPROBS)] | None = None
    modalities: list[str] | None = None
    store: bool | None = None
    metadata: _Metadata | None = None
    service_tier: _Word | None = None
    safety_identifier: _Word | None = None
    prompt_cache_key: _Word | None = None
    prompt_cache_retention: _Word | None = None
    reasoning_effort: _Word | None = None
    verbosity: _Word | None = None
    audio: Any = None
    prediction: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None


class CompletionRequest(_Common):
    """Body of POST /v1/completions."""

    prompt: Any = None
    best_of: _Int64 | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    suffix: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled, in OpenAI's words.

    Attributes:
      max_tokens: None where the request names no bound.
      logprobs: number of likeliest tokens to tell at each position; None for no log-probs, 0 for the sampled one's.
      schema: that the answer must follow; {} for any JSON object, None for any text.
    """

    n: int = 1
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Asked:
    """One checked request.

    Attributes:
      messages: of a chat; empty for a completion.
      prompts: texts or token ids of a completion; empty for a chat.
      call: which tool must be called: "" for the model's own choice, "*" for any, or a tool's name.
      echo: whether the answer begins with the prompt's text.
      conversation: the client's own name for the conversation; "" if it gives none.
      consents: whether this request may be kept and learned from, as far as the request says.
      user: the client's own name for its user; "" if it gives none.
      session: the client's name for the session that this is recorded in; "" if it gives none.
      free_temperature: whether the request leaves the temperature to the server.
    """

    kind: Literal["chat", "completion"]
    model: str
    sampling: Sampling
    messages: tuple[ChatMessage, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    call: str = ""
    prompts: tuple[str | tuple[int, ...], ...] = ()
    echo: bool = False
    stream: bool = False
    usage_in_stream: bool = False
    conversation: str = ""
    consents: bool = False
    user: str = ""
    session: str = ""
    free_temperature: bool = False


def read_chat(body: bytes) -> Asked:
    """A request for a chat completion. Raises `GatewayError`."""
    asked = _decoded(body, ChatRequest)
    for name in ("audio", "prediction", "functions", "function_call", "web_search_options"):
        if getattr(asked, name) is not None:
            raise _unsupported(name, "use tools" if name.startswith("function") else "leave it out")
    if asked.modalities not in (None, ["text"]):
        raise _unsupported("modalities", 'the model writes text alone; expected ["text"]')
    try:
        messages, tools = read_messages(asked.messages), read_tools(asked.tools)
    except SessionError as error:
        raise GatewayError(error.status, str(error), code=error.code, param=error.param or None) from None
    tools, call = _choice(tools, asked.tool_choice)
    if call:
        check_schema([tool["function"].get("parameters") for tool in tools], "tools")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
    limit = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
    named = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    schema = _schema(asked.response_format)
    if schema is not None and call:
        raise invalid("an answer that must call a tool has no format of its own", "response_format")
    return Asked(
        kind="chat",
        model=asked.model,
        sampling=_sampling(
            asked, limit, named, logprobs=(asked.top_logprobs or 0) if asked.logprobs else None, schema=schema
        ),
        messages=messages,
        tools=tools,
        call=call,
        stream=bool(asked.stream),
        usage_in_stream=_usage_in_stream(asked),
        conversation=asked.prompt_cache_key or "",
        consents=bool(asked.store) or (asked.metadata or {}).get(_CONSENT_KEY) == "yes",
        user=asked.safety_identifier or asked.user or "",
        free_temperature=asked.temperature is None,
    )


def read_completion(body: bytes) -> Asked:
    """A request for a text completion. Raises `GatewayError`."""
    asked = _decoded(body, CompletionRequest)
    if asked.suffix:
        raise _unsupported("suffix", "the model writes on from a prompt's end alone")
    if asked.best_of not in (None, asked.n or 1):
        raise _unsupported("best_of", "expected it to be n, or to be left out")
    if asked.echo and asked.logprobs is not None:
        raise _unsupported("echo", "log-probs are those of the answer alone; leave one of the two out")
    return Asked(
        kind="completion",
        model=asked.model,
        sampling=_sampling(asked, asked.max_tokens, "max_tokens", logprobs=asked.logprobs),
        prompts=_prompts(asked.prompt),
        echo=bool(asked.echo),
        stream=bool(asked.stream),
        usage_in_stream=_usage_in_stream(asked),
        user=asked.user or "",
        free_temperature=asked.temperature is None,
    )


_Body = TypeVar("_Body", ChatRequest, CompletionRequest)


def _decoded(body: bytes, kind: type[_Body]) -> _Body:
    try:
        found = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise invalid("we could not parse the JSON body of your request", code="invalid_json") from None
    except RecursionError:
        raise invalid(f"lists and objects are nested deeper than {MAX_DEPTH} levels", code="invalid_json") from None
    for name in found.__struct_fields__:
        _check_texts(getattr(found, name), name)
    return found


def _explained(message: str) -> GatewayError:
    """A decoder's complaint in OpenAI's words."""
    at = _PATH.search(message)
    path = at[1] if at else ""
    if unknown := _UNKNOWN.search(message):
        name = f"{path}.{unknown[1]}".lstrip(".")[:_MAX_NAME_CHARACTERS]
        return invalid(f"Unrecognized request argument supplied: {name}", name, "unknown_parameter")
    if missing := _MISSING.search(message):
        name = f"{path}.{missing[1]}".lstrip(".")
        return invalid(f"you must provide {name}", name, "missing_required_parameter")
    text = message[: at.start()] if at else message
    return invalid(f"{path or 'the body'}: {text}", path or None, "invalid_type")


def _check_texts(value: Any, param: str) -> None:
    """Raises `GatewayError` for what is nested too deeply, and for a NUL in a text, which no prompt needs."""
    pending: list[tuple[Any, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, str):
            if "\0" in item:
                raise invalid("a text holds the character U+0000", param)
            continue
        if not isinstance(item, dict | list):
            continue
        if depth > MAX_DEPTH:
            raise invalid(f"nested deeper than {MAX_DEPTH} levels", param)
        inner = item if isinstance(item, list) else (*item.keys(), *item.values())
        pending += [(part, depth + 1) for part in inner if isinstance(part, str | dict | list)]


def _sampling(
    asked: _Common, limit: int | None, named: str, *, logprobs: int | None, schema: Mapping[str, Any] | None = None
) -> Sampling:
    for name, value in ((named, limit), ("max_tokens", asked.max_tokens)):
        if value is not None and value < 1:
            raise invalid(f"{name} is {value}, expected at least 1", name, "integer_below_min_value")
    if asked.n is not None and not 1 <= asked.n <= MAX_CHOICES:
        raise invalid(f"n is {asked.n}, expected 1 to {MAX_CHOICES}", "n")
    temperature = 1.0 if asked.temperature is None else asked.temperature
    top_p = 1.0 if asked.top_p is None else asked.top_p
    return Sampling(
        n=asked.n or 1,
        max_tokens=limit,
        temperature=temperature if top_p > 0 else 0.0,  # no share of the probability but the likeliest token's
        top_p=top_p if top_p > 0 else 1.0,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        logit_bias=_biases(asked.logit_bias),
        seed=asked.seed,
        stop=_stops(asked.stop),
        logprobs=logprobs,
        schema=schema,
    )


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if any(not 0 < len(text) <= _MAX_STOP_CHARACTERS for text in stops):
        raise invalid(f"expected texts of 1 to {_MAX_STOP_CHARACTERS} characters", "stop")
    return stops


def _biases(given: Mapping[str, float] | None) -> Mapping[int, float] | None:
    if not given:
        return None
    if not all(re.fullmatch(r"[0-9]{1,9}", token) for token in given):
        raise invalid("expected token ids, in decimal digits, as keys", "logit_bias")
    return {int(token): bias for token, bias in given.items()}


def _choice(
    tools: tuple[Mapping[str, Any], ...], choice: str | Mapping[str, Any] | None
) -> tuple[tuple[Mapping[str, Any], ...], str]:
    """The tools that the model is shown, and which it must call, as `Asked.call`."""
    names = [tool["function"]["name"] for tool in tools]
    if not tools and choice is not None:
        if choice == "none":
            return (), ""
        raise invalid("tool_choice needs tools", "tool_choice")
    match choice:
        case None | "auto":
            return tools, ""
        case "none":
            return (), ""
        case "required":
            return tools, "*"
        case {"type": "function", "function": {"name": str(name)}} if name in names:
            return tools, name
    raise invalid("expected none, auto, required, or a function among the tools", "tool_choice")


def _schema(given: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The schema of a response_format, as `Sampling.schema`."""
    match given:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {}
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            check_schema(schema, "response_format")
            return schema
    raise invalid(
        'expected {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": '
        '{"name": ..., "schema": {...}}}',
        "response_format",
    )


def _prompts(prompt: Any) -> tuple[str | tuple[int, ...], ...]:
    if prompt is None:
        raise invalid("you must provide prompt", "prompt", "missing_required_parameter")
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list) or not prompt:
        raise invalid(_PROMPT_FORMS, "prompt")
    if type(prompt[0]) is int:
        return (_ids(prompt),)
    if len(prompt) > _MAX_PROMPTS:
        raise invalid(f"expected at most {_MAX_PROMPTS} prompts", "prompt")
    return tuple(item if isinstance(item, str) else _ids(item) for item in prompt)


def _ids(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not values or not all(type(value) is int and value >= 0 for value in values):
        raise invalid(_PROMPT_FORMS, "prompt")
    return tuple(values)


def _usage_in_stream(asked: _Common) -> bool:
    if asked.stream_options is not None and not asked.stream:
        raise invalid("stream_options needs stream to be true", "stream_options")
    return asked.stream_options is not None and bool(asked.stream_options.include_usage)


def _unsupported(param: str, advice: str) -> GatewayError:
    return GatewayError(400, f"{param} is not supported: {advice}", code="unsupported_parameter", param=param)
