"""Documents that a policy may search: a JSONL file of {id, text, title}, or a folder of text files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.contracts import TaskError

_SUFFIXES = (".txt", ".md", ".rst")
#: of one file of a folder, and of one line; longer ones are refused
_MAX_BYTES = 16 * 2**20
_MAX_ID = 200


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
      id: by which it is cited; unique in its corpus.
    """

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents under a name.

    Attributes:
      digest: of all of them, for versions of rewards.
    """

    name: str
    documents: tuple[Document, ...]
    digest: str


def read_corpus(name: str, path: str, *, setting: str = "task.episode.corpora") -> Corpus:
    """All documents of a file or a folder.

    Args:
      setting: that names it, for errors.

    Raises:
      TaskError: there are none, or one lacks its text or has an id that another has.
    """
    where, source = f"{setting}.{name} {path!r}", Path(path)
    try:
        found = tuple(_of_folder(source, where) if source.is_dir() else _of_file(source, where))
    except OSError as error:
        raise TaskError(f"{where} can't be read: {error}") from None
    if not found:
        kind = f"files that end in {', '.join(_SUFFIXES)}" if source.is_dir() else "lines with documents"
        raise TaskError(f"{where} has no {kind}")
    seen: set[str] = set()
    digest = hashlib.sha256()
    for document in found:
        if document.id in seen:
            raise TaskError(f"{where} has two documents with the id {document.id!r:.80}")
        seen.add(document.id)
        digest.update(json.dumps([document.id, document.title, document.text]).encode() + b"\n")
    return Corpus(name, found, digest.hexdigest()[:12])


def _of_file(path: Path, where: str) -> Iterator[Document]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if len(line) > _MAX_BYTES:
                raise TaskError(f"{where}, line {number} has {len(line)} bytes, at most {_MAX_BYTES} are read")
            text = _text(line, f"{where}, line {number}").strip()
            if text:
                yield _document(text, number, f"{where}, line {number}")


def _document(line: str, number: int, where: str) -> Document:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where} is no JSON: {error}") from None
    if not isinstance(value, Mapping) or not isinstance(value.get("text"), str) or not value["text"].strip():
        raise TaskError(f'{where}: expected an object with "text", and "id" and "title" where there are any')
    identity, title = value.get("id", number), value.get("title", "")
    if not isinstance(identity, str | int) or isinstance(identity, bool) or not isinstance(title, str):
        raise TaskError(f"{where}: id is {identity!r:.80} and title {title!r:.80}, expected texts")
    return Document(_identity(str(identity), where), title, value["text"])


def _of_folder(folder: Path, where: str) -> Iterator[Document]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _SUFFIXES or not path.is_file():
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if path.stat().st_size > _MAX_BYTES:
            raise TaskError(f"{where}: {name} has more than {_MAX_BYTES} bytes")
        text = _text(path.read_bytes(), f"{where}: {name}")
        if text.strip():
            yield Document(_identity(name, where), "", text)


def _text(payload: bytes, where: str) -> str:
    try:
        return payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{where} is no UTF-8: {error}; convert it") from None


def _identity(text: str, where: str) -> str:
    if not text or len(text) > _MAX_ID or not text.isprintable() or any(character in text for character in "[]<>|"):
        raise TaskError(
            f"{where}: the id {text!r:.80} can't be cited; expected 1 to {_MAX_ID} characters, none of []<>|"
        )
    return text
