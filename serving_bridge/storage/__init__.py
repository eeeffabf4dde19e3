"""Object storage by URL (S3, Google's, Azure's, others of fsspec's), and files of it that are kept on this host."""

from serving_bridge.storage.checkpoint_copies import CheckpointObjects
from serving_bridge.storage.file_cache import FileCache
from serving_bridge.storage.folders import fetch_objects
from serving_bridge.storage.fsspec_objects import FsspecObjects
from serving_bridge.storage.objects import (
    ObjectStore,
    StorageError,
    StorageSetupError,
    StorageTimeouts,
    is_url,
    storage_variables,
    unshared,
    url_problem,
)
from serving_bridge.storage.pieces import ContentError, each

__all__ = [
    "CheckpointObjects",
    "ContentError",
    "FileCache",
    "FsspecObjects",
    "ObjectStore",
    "StorageError",
    "StorageSetupError",
    "StorageTimeouts",
    "each",
    "fetch_objects",
    "is_url",
    "storage_variables",
    "unshared",
    "url_problem",
]
