"""The store of policy versions: written whole, hashed, in anchors and differences."""

from serving_bridge.weights.delta import Encoder, changes, decode, moved
from serving_bridge.weights.files import (
    StoreError,
    Tensor,
    WeightIntegrityError,
    content_sha256,
    entry_of,
    mapped_safetensors,
    words_dtype,
    write_safetensors,
    xxh3_128,
)
from serving_bridge.weights.inspection import VersionRow, difference_from
from serving_bridge.weights.publisher import Publisher
from serving_bridge.weights.reader import manifests_to_load, read_path, read_version
from serving_bridge.weights.shelf import ShelfOptions
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionHeader, VersionWriter

__all__ = [
    "Encoder",
    "Publisher",
    "ShelfOptions",
    "StoreError",
    "Tensor",
    "VersionHeader",
    "VersionRow",
    "VersionWriter",
    "WeightIntegrityError",
    "WeightStore",
    "changes",
    "content_sha256",
    "decode",
    "difference_from",
    "entry_of",
    "manifests_to_load",
    "mapped_safetensors",
    "moved",
    "read_path",
    "read_version",
    "words_dtype",
    "write_safetensors",
    "xxh3_128",
]
