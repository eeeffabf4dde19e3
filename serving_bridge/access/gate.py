"""What a replica lets in: an exact list of routes, each with who may ask, how, and with which arguments.

Deny by default. Without a token there is only /health; the control token opens all of the list, the inference token
sampling and metrics. Pure: `vllm_plugin.middleware` asks it before vLLM sees a request, and so does the fake engine.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from learner_jax.runtime import WeirError
from serving_bridge.access.fence import FENCING_HEADER, ROUND_ROUTE, SERVE_ROUTE, SWAP_ROUTE
from serving_bridge.access.keys import Role
from serving_bridge.access.lease import MAX_LEASE_S
from serving_bridge.access.probes import CONTROL_TOKEN, PREFIX
from serving_bridge.access.refusals import Refused

#: environment variables that the replica starter sets for a server; tokens are never on a command line
INFERENCE_TOKEN = "WEIR_INFERENCE_TOKEN"
BASE_URL = "WEIR_BASE_URL"
ALSO_OPEN = "WEIR_ALSO_OPEN"

MAX_VERSION = 2**31 - 1
#: version name of weights that no probe has passed yet; answers that carry it are refused
UNPROVEN = "unproven"

_MAX_CONTROL_BYTES = 64 << 10
_MAX_PROMPT_BYTES = 16 << 20
_MAX_PROMPTS = 1024
_MIN_TOKEN_CHARACTERS = 32
_MAX_TOP_LOGPROBS = 20
_MAX_STOPS, _MAX_STOP_CHARACTERS = 16, 256
_MAX_BIASES = 1024

Headers = Sequence[tuple[bytes, bytes]]

_FENCING_HEADER = FENCING_HEADER.lower().encode()


class GateError(WeirError, RuntimeError):
    """A server was started without its tokens or address."""


@dataclass(frozen=True)
class Route:
    """One (method, path).

    Attributes:
      role: who may ask; None for anybody.
      query: all that may stand after the question mark.
      max_bytes: of the body; 0 for routes that take none.
      check: gives what it read in a body, and raises `Refused` for one that is not ours; also told who asks.
    """

    method: str
    path: bytes
    role: Role | None
    query: bytes = b""
    max_bytes: int = 0
    check: Callable[[bytes, Role | None], Any] | None = None


@dataclass(frozen=True)
class Entry:
    """A request whose head is in order.

    Attributes:
      fencing_token: of the weight round that asks; None if it names none.
    """

    route: Route
    caller: Role | None
    fencing_token: int | None = None


class Gate:
    """The rules of one server.

    Args:
      base_url: where it listens; the only Host that is answered.
      also: further routes, e.g. of benchmarks and of the fake engine.
    """

    def __init__(self, base_url: str, control: str, inference: str, also: Iterable[Route] = ()) -> None:
        for name, token in ((CONTROL_TOKEN, control), (INFERENCE_TOKEN, inference)):
            if len(token) < _MIN_TOKEN_CHARACTERS:
                raise GateError(f"{name} has {len(token)} characters, expected at least {_MIN_TOKEN_CHARACTERS}")
        if hmac.compare_digest(control, inference):
            raise GateError(f"{CONTROL_TOKEN} and {INFERENCE_TOKEN} are the same")
        address = urlsplit(base_url)
        if not address.netloc:
            raise GateError(f"{BASE_URL} is {base_url!r}, expected http://HOST:PORT")
        self._hosts = {address.netloc.lower().encode()}
        if address.port == 80:
            self._hosts.add(address.netloc.lower().removesuffix(":80").encode())
        self._tokens: dict[Role, bytes] = {"control": control.encode(), "inference": inference.encode()}
        self._routes = {(route.method, route.path): route for route in (*_ROUTES, *also)}

    @staticmethod
    def of_environment(environment: Mapping[str, str], also: Iterable[Route] = ()) -> Gate:
        """The rules that the replica starter set. Raises `GateError` where it did not."""
        missing = [name for name in (CONTROL_TOKEN, INFERENCE_TOKEN, BASE_URL) if not environment.get(name)]
        if missing:
            raise GateError(f"{', '.join(missing)} not set: serving_bridge.fleet.replica starts servers with them")
        paths = environment.get(ALSO_OPEN, "").split()
        more = [Route("POST", path.encode(), "inference", max_bytes=_MAX_PROMPT_BYTES, check=_json) for path in paths]
        tokens = environment[CONTROL_TOKEN], environment[INFERENCE_TOKEN]
        return Gate(environment[BASE_URL], *tokens, also=[*more, *also])

    def enter(self, method: str, raw_path: bytes, query: bytes, headers: Headers) -> Entry:
        """Who asks for what, from a request's head.

        Args:
          raw_path: as it came, not decoded: a path in another spelling is another path.
          headers: names in lower case.

        Raises:
          Refused: it must not be answered.
        """
        found = _by_name(headers)
        hosts = found.get(b"host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            raise Refused(421, "the Host is not this server's address")
        if b"origin" in found:
            raise Refused(403, "requests of web pages are not answered")
        route = self._routes.get((method, raw_path))
        caller: Role | None = None
        if route is None or route.role is not None:
            caller = self._caller(found.get(b"authorization", []))
            if caller is None:
                raise Refused(401, "expected Authorization: Bearer TOKEN, with a token of this start of the server")
        if route is None:
            raise Refused(404, "no such route")
        if route.role == "control" and caller != "control":
            raise Refused(403, "this route needs the control token")
        if query != route.query:
            raise Refused(403, f"expected the query {route.query.decode()!r}")
        _check_body_headers(route, found)
        return Entry(route, caller, _fencing_token(found.get(_FENCING_HEADER, [])))

    def check_body(self, entry: Entry, body: bytes) -> Any:
        """What the route's check read in a body. Raises `Refused` for one that the route must not be given."""
        if len(body) > entry.route.max_bytes:
            raise Refused(413, f"expected a body of at most {entry.route.max_bytes} bytes")
        return None if entry.route.check is None else entry.route.check(body, entry.caller)

    def _caller(self, values: Sequence[bytes]) -> Role | None:
        scheme, _, token = (values[0] if len(values) == 1 else b"").partition(b" ")
        found: Role | None = None
        for role, expected in self._tokens.items():
            if hmac.compare_digest(token, expected) and scheme.lower() == b"bearer":
                found = role
        return found


def without_request_id(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers that vLLM gets: it would take a request's id from X-Request-Id before that of the body."""
    return [(name, value) for name, value in headers if name != b"x-request-id"]


def _fencing_token(values: Sequence[bytes]) -> int | None:
    if not values:
        return None
    if len(values) != 1 or not re.fullmatch(rb"[1-9][0-9]{0,17}", values[0]):
        raise Refused(400, f"expected one {FENCING_HEADER}, a positive decimal number")
    return int(values[0])


def _by_name(headers: Headers) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    return found


def _check_body_headers(route: Route, headers: Mapping[bytes, Sequence[bytes]]) -> None:
    lengths = headers.get(b"content-length", [])
    if b"transfer-encoding" in headers or b"content-encoding" in headers or b"upgrade" in headers:
        raise Refused(400, "expected a plain body with Content-Length")
    if route.max_bytes == 0:
        if any(length != b"0" for length in lengths):
            raise Refused(400, "expected no body")
        return
    if len(lengths) != 1 or not lengths[0].isdigit():
        raise Refused(411, "expected Content-Length")
    if len(lengths[0]) > 12 or int(lengths[0]) > route.max_bytes:
        raise Refused(413, f"expected a body of at most {route.max_bytes} bytes")
    kinds = headers.get(b"content-type", [])
    kind = kinds[0].lower().replace(b" ", b"") if len(kinds) == 1 else b""
    if kind not in (b"application/json", b"application/json;charset=utf-8"):
        raise Refused(415, "expected Content-Type: application/json")


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    pass


_Version = Annotated[int, Meta(ge=0, le=MAX_VERSION)]
_Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_RoundId = Annotated[str, Meta(min_length=1, max_length=256)]
_Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class _Stage(_Body):
    version: _Version
    content_sha256: _Hash
    round_id: _RoundId
    lease_s: Annotated[float, Meta(gt=0, le=MAX_LEASE_S)]
    sealed: _Hash | Literal[""] = ""  # as `WorkerExtension.weir_stage` takes it


class _Round(_Body):
    round_id: Annotated[str, Meta(max_length=256)]


class _Call(_Body):
    method: str
    kwargs: msgspec.Raw


class _Update(_Body):
    """Ends an update session that a dead controller left open; weights are changed by a swap alone."""

    update_info: _Body


class _Name(_Body):
    new_version: Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,9})\Z")]


class Swap(_Body):
    """What a weight round asks for inside its pause, but for its end."""

    version: _Version
    content_sha256: _Hash
    round_id: _RoundId
    #: False where the workers hold the version already, and only the proof is asked for
    applies: bool
    #: token ids of each golden prompt, as `Generate.token_ids`
    golden: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=_MAX_PROMPTS)]


class Serve(_Body):
    """The end of a round whose weights were proven."""

    version: _Version


_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_StopText = Annotated[str, Meta(min_length=1, max_length=_MAX_STOP_CHARACTERS)]
_TokenId = Annotated[str, Meta(pattern=r"^[0-9]{1,9}\Z")]


class Structure(_Body):
    """What an answer must look like: JSON that follows a schema, or any JSON object."""

    json: dict[str, msgspec.Raw] | None = None
    json_object: Literal[True] | None = None


class Sampling(_Body):
    """How answers are sampled, in vLLM's own words."""

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_VERSION)]
    n: Annotated[int, Meta(ge=1, le=MAX_VERSION)] = 1
    temperature: Annotated[float, Meta(ge=0)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    seed: _Int | None = None
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=_MAX_TOP_LOGPROBS)] | None = None
    prompt_logprobs: Literal[0] | None = None
    detokenize: bool = True
    #: what follows is of users; packed answers know none of it
    stop: Annotated[list[_StopText], Meta(max_length=_MAX_STOPS)] = []
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    logit_bias: Annotated[dict[_TokenId, float], Meta(max_length=_MAX_BIASES)] = {}
    structured_outputs: Structure | None = None


class Generate(_Body):
    """A request for answers, or for the log-probs of a prompt."""

    sampling_params: Sampling
    #: a list, whose many numbers are for vLLM to look at; empty where it was not given
    token_ids: msgspec.Raw = msgspec.Raw()
    #: several such lists in its place, each answered as by a request of its own; taken where `packed`
    prompts: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=_MAX_PROMPTS)] | None = None
    request_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,200}\Z")] | None = None
    priority: Annotated[int, Meta(ge=-1, le=MAX_VERSION)] = 0
    stream: bool = False
    #: answered by `vllm_plugin.sampling`, in packed arrays
    packed: bool = False
    #: requests share the prefix cache with those of the same salt alone
    cache_salt: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._=+/-]{1,200}\Z")] | None = None


@dataclass(frozen=True)
class WorkerCall:
    """A call of the plugin's workers."""

    method: str


_METHODS: Mapping[str, type[_Body]] = {"weir_stage": _Stage, "weir_status": _Round, "weir_release": _Round}


def _decoded(kind: type[Any], body: bytes | msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"the body is not what is taken here: {error}") from None


def _shaped(kind: type[Any]) -> Callable[[bytes, Role | None], Any]:
    def check(body: bytes, caller: Role | None) -> Any:
        return _decoded(kind, body)

    return check


def _json(body: bytes, caller: Role | None) -> None:
    _decoded(dict[str, msgspec.Raw], body)


def _check_call(body: bytes, caller: Role | None) -> WorkerCall:
    call: _Call = _decoded(_Call, body)
    if call.method not in _METHODS:
        raise Refused(403, f"this method is not called from outside, only {', '.join(_METHODS)}")
    _decoded(_METHODS[call.method], call.kwargs)
    return WorkerCall(call.method)


def _check_generate(body: bytes, caller: Role | None) -> Generate:
    asked: Generate = _decoded(Generate, body)
    if bool(asked.token_ids) is (asked.prompts is not None):
        raise Refused(400, "expected either token_ids or prompts")
    _check_prompts([asked.token_ids] if asked.prompts is None else asked.prompts)
    if asked.prompts is not None and (not asked.packed or asked.request_id is not None):
        raise Refused(400, "answers to several prompts are packed, and have no request_id")
    if asked.packed and asked.stream:
        raise Refused(400, "packed answers are sent whole")
    if asked.packed and _is_of_users(asked):
        raise Refused(400, "packed answers have no stop texts, penalties, biases, structure, top log-probs or salt")
    if caller == "control":
        return asked
    if asked.priority < 0:
        raise Refused(403, f"priority {asked.priority} needs the control token")
    if asked.request_id is not None and asked.request_id.startswith(PREFIX):
        raise Refused(403, "probes need the control token")
    return asked


def _is_of_users(asked: Generate) -> bool:
    sampling = asked.sampling_params
    options = (
        *(sampling.stop, sampling.presence_penalty, sampling.frequency_penalty, sampling.logit_bias),
        *(sampling.structured_outputs, sampling.logprobs, asked.cache_salt),
    )
    return any(options)


def _check_swap(body: bytes, caller: Role | None) -> Swap:
    asked: Swap = _decoded(Swap, body)
    _check_prompts(asked.golden)
    return asked


def _check_prompts(prompts: Iterable[msgspec.Raw]) -> None:
    if any(memoryview(tokens)[0] != ord("[") for tokens in prompts):
        raise Refused(400, "expected the token ids of a prompt to be a list")


_PAUSE_QUERY = b"mode=keep&clear_cache=true"
_ROUTES: tuple[Route, ...] = (
    Route("GET", b"/health", None),
    Route("GET", b"/metrics", "inference"),
    Route("POST", b"/inference/v1/generate", "inference", max_bytes=_MAX_PROMPT_BYTES, check=_check_generate),
    Route("GET", b"/is_paused", "control"),
    Route("GET", b"/weight_info", "control"),
    Route("POST", ROUND_ROUTE.encode(), "control"),
    Route("POST", SWAP_ROUTE.encode(), "control", max_bytes=_MAX_PROMPT_BYTES, check=_check_swap),
    Route("POST", SERVE_ROUTE.encode(), "control", max_bytes=_MAX_CONTROL_BYTES, check=_shaped(Serve)),
    Route("POST", b"/pause", "control", query=_PAUSE_QUERY),
    Route("POST", b"/resume", "control"),
    Route("POST", b"/start_weight_update", "control"),
    Route("POST", b"/update_weights", "control", max_bytes=_MAX_CONTROL_BYTES, check=_shaped(_Update)),
    Route("POST", b"/update_weight_version", "control", max_bytes=_MAX_CONTROL_BYTES, check=_shaped(_Name)),
    Route("POST", b"/abort_requests", "control", max_bytes=_MAX_CONTROL_BYTES, check=_shaped(_Body)),
    Route("POST", b"/collective_rpc", "control", max_bytes=_MAX_CONTROL_BYTES, check=_check_call),
)
