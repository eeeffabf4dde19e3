"""An entry of the registry: what one candidate is, where it comes from, and what it was made of."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from learner_jax.contracts import MAX_STEP, MAX_VERSION, TensorEntry, quoted
from serving_bridge.registry.errors import RegistryError, RegistryIntegrityError

ENTRY_SCHEMA = 1
MAX_DOCUMENT_BYTES = 2**20

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z", max_length=1000)]
_Name = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,39}\Z")]
_Path = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\Z")]
_Number = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]

#: The stages of an entry, and which may follow which. `rejected` and `rolled_back` are final: the same weights can be
#: registered again.
STAGES: dict[str, frozenset[str]] = {
    "candidate": frozenset({"passed", "rejected"}),
    "passed": frozenset({"shadow", "canary", "stable", "rejected"}),
    "shadow": frozenset({"passed", "canary", "rejected", "rolled_back"}),
    "canary": frozenset({"passed", "stable", "rejected", "rolled_back"}),
    "stable": frozenset({"retired", "rolled_back"}),
    "retired": frozenset({"stable", "rolled_back"}),
    "rejected": frozenset(),
    "rolled_back": frozenset(),
}
#: Stages whose entries no alias may be moved to.
CLOSED = frozenset({"rejected", "rolled_back"})
#: Stages that follow no evaluation gate; to be moved to, such an entry needs somebody who takes the responsibility.
UNPROVEN = frozenset({"candidate"})


class RegisteredFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file beside the weights (config, tokenizer, the run's settings), kept by its content."""

    name: _Path
    num_bytes: _Count
    sha256: _Sha256


class DataWindow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an entry was trained on: rows `first` to `last`, both inclusive, of a source at one state of it.

    Attributes:
      sha256: of the source as it was, or of what names it; "" where that is not known.
    """

    source: _Text
    first: _Count
    last: _Count
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights were made.

    Attributes:
      kind: `run` for a version that a learner published, `folder` for a model from outside.
      run: name of the run, or of the folder.
      version: the policy version in the run's weight store; 0 for a folder.
      step: optimizer steps behind it.
      code: version and commit of Weir that registered it.
    """

    kind: Literal["run", "folder"]
    run: _Text
    version: Annotated[int, msgspec.Meta(ge=0, le=MAX_VERSION)]
    step: Annotated[int, msgspec.Meta(ge=0, le=MAX_STEP)]
    code: _Text = ""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry, as it was registered; it never changes. Its stage, reports and aliases are kept beside it.

    Attributes:
      number: 1, 2, 3 and so on in its namespace.
      previous: `sha256` of the entry before it in its namespace, "" for the first: rows can't be exchanged unseen.
      parent: the entry that it was trained from or compared with; None for a first one.
      content: identity of the weights, `WeightManifest.content_sha256`.
      shape: identity of names, shapes and dtypes of the tensors: equal for models that fit into each other's place.
      tokenizer: sha256 of tokenizer.json; "" where the model folder had none.
      weight_version: of the registry's own weight store.
      versions: of rewards, verifiers and guards, by name.
      consent: sha256 of the list of consents that the data was taken under; "" where no user's data was used.
      files: beside the weights, sorted by name.
    """

    schema: int
    namespace: _Name
    number: _Number
    previous: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
    parent: _Number | None
    origin: Origin
    content: _Sha256
    shape: _Sha256
    tokenizer: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
    weight_version: _Number
    num_parameters: _Count
    dtype: _Text
    files: list[RegisteredFile]
    data: list[DataWindow]
    versions: dict[_Text, _Text]
    consent: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
    note: _Text
    actor: _Text
    created_s: float

    @property
    def id(self) -> str:
        """How people and logs name it: `acme/7`."""
        return f"{self.namespace}/{self.number}"


@dataclass(frozen=True)
class Candidate:
    """What is said of weights when they are registered; the registry adds the rest. Attributes as in `Entry`."""

    origin: Origin
    parent: int | None = None
    data: tuple[DataWindow, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    consent: str = ""
    note: str = ""


def encode_entry(entry: Entry) -> str:
    """Canonical JSON: the same entry is always the same text.

    Raises:
      RegistryError: a field holds what an entry can't; names it.
    """
    text = msgspec.json.encode(entry, order="sorted").decode()
    try:
        decoded = msgspec.json.decode(text, type=Entry)
    except msgspec.ValidationError as error:
        raise RegistryError(f"entry {quoted(entry.namespace, 60)}/{entry.number}: {quoted(str(error))}") from error
    if decoded != entry or len(text.encode()) > MAX_DOCUMENT_BYTES:
        raise RegistryError(f"entry {entry.id} takes {len(text)} characters, expected at most {MAX_DOCUMENT_BYTES}")
    return text


def decode_entry(document: str, sha256: str, *, name: str) -> Entry:
    """Inverse of `encode_entry`.

    Raises:
      RegistryIntegrityError: the row is not what was registered.
    """
    found = digest(document)
    if found != sha256:
        raise RegistryIntegrityError(f"entry {name} has sha256 {found}, expected {sha256}: its row was changed")
    try:
        entry = msgspec.json.decode(document, type=Entry)
    except msgspec.MsgspecError as error:
        raise RegistryIntegrityError(f"entry {name} is no entry: {quoted(str(error))}") from error
    if entry.schema != ENTRY_SCHEMA:
        raise RegistryError(f"entry {name} has schema {entry.schema}, this build reads {ENTRY_SCHEMA}")
    return entry


def digest(document: str) -> str:
    """sha256 of a text, hexadecimal."""
    return hashlib.sha256(document.encode()).hexdigest()


def shape_sha256(tensors: list[TensorEntry]) -> str:
    """The identity of a model's shape: over names, shapes and dtypes of its tensors, in the order of their names."""
    lines = sorted(f"{entry.name} {entry.shape} {entry.dtype}\n" for entry in tensors)
    return digest("".join(lines))


def is_name(text: str) -> bool:
    """Whether a namespace or alias may have this name."""
    return _NAME.fullmatch(text) is not None


def checked_name(name: str, what: str) -> str:
    """A namespace or alias. Raises `RegistryError` for what is none."""
    if not is_name(name):
        raise RegistryError(
            f"{what} {quoted(name, 60)}: expected at most 40 lower-case letters, digits and dashes, e.g. acme"
        )
    return name


def checked_stage(old: str, new: str, *, name: str) -> str:
    """Raises `RegistryError` unless an entry may go from stage `old` to `new`."""
    if new not in STAGES:
        raise RegistryError(f"stage {quoted(new, 60)}: expected one of {', '.join(STAGES)}")
    if new not in STAGES[old]:
        after = ", ".join(sorted(STAGES[old])) or "no other: register the weights again"
        raise RegistryError(f"entry {name} is {old} and can't become {new}; expected {after}")
    return new
