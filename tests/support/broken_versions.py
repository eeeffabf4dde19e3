"""Versions that no replica may take, for the tests of weight rounds."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import ml_dtypes
import msgspec
import numpy as np

from learner_jax.contracts.weights import WeightManifest, encode_manifest
from serving_bridge.weights.shelf import MANIFEST_NAME, WEIGHTS_NAME
from serving_bridge.weights.writer import VersionWriter
from tests.support.weight_world import World, golden_of, tensors_of


def rewrite(world: World, manifest: WeightManifest, **changes: Any) -> WeightManifest:
    """Changes a stored manifest on disk."""
    changed = msgspec.structs.replace(manifest, **changes)
    (world.store.folder(manifest.version) / MANIFEST_NAME).write_bytes(encode_manifest(changed))
    return changed


def flip_bit(world: World) -> WeightManifest:
    manifest = world.publish(world.model_a)
    path = world.store.folder(manifest.version) / WEIGHTS_NAME
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return manifest


def cut_file(world: World) -> WeightManifest:
    manifest = world.publish(world.model_a)
    os.truncate(world.store.folder(manifest.version) / WEIGHTS_NAME, 1000)
    return manifest


def gone_base(world: World) -> WeightManifest:
    return rewrite(world, world.publish(world.model_a), base_version=0)


def other_content(world: World) -> WeightManifest:
    return msgspec.structs.replace(world.publish(world.model_a), content_sha256="0" * 64)


def older_version(world: World) -> WeightManifest:
    return world.store.manifest(1)


def publish_changed(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[World], WeightManifest]:
    def publish(world: World) -> WeightManifest:
        tensors = tensors_of(world.model_a)
        change(tensors)
        return VersionWriter(world.store).publish(tensors.items(), step=0, golden=golden_of(world.model_a))

    return publish


def lose_norm(tensors: dict[str, np.ndarray]) -> None:
    del tensors["model.norm.weight"]


def add_head(tensors: dict[str, np.ndarray]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]


def grow_embedding(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.embed_tokens.weight"] = np.zeros((130, 64), np.float32)


def narrow_dtype(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(ml_dtypes.bfloat16)


#: how to publish a version that must be rejected while it is staged, and what the rejection says
BROKEN = (
    (flip_bit, r"weights.safetensors has sha256 \w+, expected \w+"),
    (cut_file, r"has 1000 bytes, expected \d+"),
    (gone_base, r"is full, with base version 0"),
    (other_content, r"version \d+ of .* is \w+, expected 0{64}"),
    (older_version, r"version 1 \(\w+\) is not newer than version \d+ \(\w+\)"),
    (publish_changed(lose_norm), r"1 missing \['model.norm.weight'\], 0 unknown"),
    (publish_changed(add_head), r"0 missing \[\], 1 unknown \['lm_head.weight'\]"),
    (publish_changed(grow_embedding), r"embed_tokens.weight has shape \(130, 64\), expected \(128, 64\)"),
    (publish_changed(narrow_dtype), r"norm.weight has dtype bfloat16, but the server computes in float32"),
)


def skipped(world: World) -> WeightManifest:
    """A whole layer's output projection that the update left as it was."""
    tensors = tensors_of(world.model_a)
    name = "model.layers.1.self_attn.o_proj.weight"
    tensors[name] = tensors_of(world.model_b)[name]
    return VersionWriter(world.store).publish(tensors.items(), step=0, golden=golden_of(world.model_a))


def transposed(world: World) -> WeightManifest:
    tensors = tensors_of(world.model_a)
    query = tensors["model.layers.1.self_attn.q_proj.weight"]
    tensors["model.layers.1.self_attn.q_proj.weight"] = np.ascontiguousarray(query.T)
    return VersionWriter(world.store).publish(tensors.items(), step=0, golden=golden_of(world.model_a))


def stale_tied_head(world: World) -> WeightManifest:
    """The server has one matrix at both ends; here the learner's head is another, which is as far apart."""
    model = copy.deepcopy(world.model_a)
    model.lm_head.weight = world.model_b.lm_head.weight
    return VersionWriter(world.store).publish(tensors_of(world.model_a).items(), step=0, golden=golden_of(model))


#: how to publish a version that only its golden prompts give away
WRONG = (skipped, transposed, stale_tied_head)
