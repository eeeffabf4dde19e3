"""Object storage by URL (S3, GCS and what else fsspec reaches), and files of it that are kept on this host."""

from serving_bridge.storage.file_cache import ContentError, FileCache
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

__all__ = [
    "ContentError",
    "FileCache",
    "FsspecObjects",
    "ObjectStore",
    "StorageError",
    "StorageSetupError",
    "StorageTimeouts",
    "is_url",
    "storage_variables",
    "unshared",
    "url_problem",
]
