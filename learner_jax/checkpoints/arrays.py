"""Whether the arrays that a manifest promises are all there: every chunk, with as many bytes as it needs.

Nothing of the chunks is read, only the index, so that this is cheap for models of any size. Arrays are in one of the
two forms that Weir writes: OCDBT from one or several hosts, or a folder an array; both with zarr 2 inside.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - lets NumPy know the name bfloat16
import numpy as np
import tensorstore as ts

from learner_jax.checkpoints.manifest import ArraySpec, ArraySpecs

#: Orbax's description of a tree.
TREE = "_METADATA"
_OCDBT = "manifest.ocdbt"
_ARRAY = ".zarray"
#: Problems of one item that are listed; a lost folder would make thousands.
_SHOWN = 20


@dataclass(frozen=True)
class _Value:
    """Where a key's value is: inline, or so many bytes from `offset` of a file."""

    size: int
    inline: bytes | None = None
    file: Path | None = None
    offset: int = 0

    def read(self) -> bytes:
        if self.inline is not None:
            return self.inline
        assert self.file is not None
        with self.file.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def array_problems(item: Path, specs: ArraySpecs) -> tuple[str, ...]:
    """What is missing or cut among the arrays of a checkpoint's item, such as <step>/state; empty if it is whole.

    Args:
      specs: the item's arrays as the manifest has them.
    """
    try:
        tree = json.loads((item / TREE).read_text())
        named = {
            ".".join(str(part["key"]) for part in leaf["key_metadata"])
            for leaf in tree["tree_metadata"].values()
            if not leaf["value_metadata"]["skip_deserialize"]  # an empty part of the tree
        }
        uses_ocdbt = bool(tree["use_ocdbt"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return (f"{item / TREE}: expected Orbax's description of the arrays, got {error!r}",)
    if named != set(specs):
        name = min(named ^ set(specs))
        return (f"{item / TREE}: expected the manifest's arrays, but {name} is in one of the two alone",)
    try:
        stored = _ocdbt_values(item) if uses_ocdbt else _folder_values(item, specs)
        found = itertools.chain.from_iterable(_array(item, name, spec, stored) for name, spec in specs.items())
        return tuple(itertools.islice(found, _SHOWN))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).partition(" [tensorstore_spec")[0]
        return (f"{item / _OCDBT}: expected an index of all chunks, got {reason}",)


def _array(item: Path, name: str, spec: ArraySpec, stored: Mapping[str, _Value]) -> Iterator[str]:
    """Problems of one array."""
    described = stored.get(f"{name}/{_ARRAY}")
    if described is None:
        yield f"{item}: expected array {name}, but it is missing"
        return
    try:
        zarr = json.loads(described.read())
        shape, chunk = tuple(zarr["shape"]), tuple(zarr["chunks"])
        dtype = np.dtype(zarr["dtype"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{item}: expected the shape of array {name}, got {error!r}"
        return
    got = ArraySpec(shape, dtype.name)
    if got != spec:
        yield f"{item}: expected array {name} to be {spec}, got {got}"
        return
    size = None if zarr.get("compressor") is not None else math.prod(chunk) * dtype.itemsize
    for index in _grid(shape, chunk):
        key = f"{name}/{zarr.get('dimension_separator', '.').join(map(str, index)) or '0'}"
        problem = _chunk(stored.get(key), size)
        if problem is not None:
            yield f"{item}: chunk {key}: {problem}"


def _grid(shape: Sequence[int], chunk: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(-(-whole // part)) for whole, part in zip(shape, chunk, strict=True)))


def _chunk(value: _Value | None, size: int | None) -> str | None:
    """What is wrong with one chunk of so many bytes; None where they are compressed."""
    if value is None:
        return "expected to be there, but it is missing"
    if size is not None and value.size != size:
        return f"expected {size} bytes, got {value.size}"
    if value.size == 0:
        return "expected content, got 0 bytes"
    if value.file is not None:
        end = value.offset + value.size
        try:
            there = value.file.stat().st_size
        except OSError as error:
            return f"expected {value.size} bytes in {value.file}, got {error!r}"
        if there < end:
            return f"expected {value.file} to have at least {end} bytes, got {there}"
    return None


def _folder_values(item: Path, specs: ArraySpecs) -> Mapping[str, _Value]:
    """Every file of every array's folder."""
    found = {}
    for name in specs:
        folder = item / name
        for path in folder.iterdir() if folder.is_dir() else ():
            found[f"{name}/{path.name}"] = _Value(path.stat().st_size, file=path)
    return found


def _ocdbt_values(item: Path) -> Mapping[str, _Value]:
    """Every key of an OCDBT database; its nodes carry checksums of their own, which are checked."""
    context = ts.Context()
    base = ts.KvStore.open({"driver": "file", "path": f"{item}/"}, context=context).result()

    def dumped(location: str | None) -> Any:
        return ts.ocdbt.dump(base, location, context=context).result()

    found: dict[str, _Value] = {}
    root = dumped(None)["versions"][-1]["root"]
    waiting = [(root["location"], b"")]
    while waiting:
        location, prefix = waiting.pop()
        for entry in dumped(location)["entries"]:
            if "location" in entry:
                waiting.append((entry["location"], prefix + entry["subtree_common_prefix"]))
                continue
            key = (prefix + entry["key"]).decode()
            if "inline_value" in entry:
                found[key] = _Value(len(entry["inline_value"]), inline=entry["inline_value"])
            else:
                _, folder, name, offset, size = entry["indirect_value"].split(":")
                found[key] = _Value(int(size), file=item / (folder + name), offset=int(offset))
    return found
