"""What every process needs of its machine: waits, crash points, errors, doors to users' code; free of JAX."""

from learner_jax.runtime.allocator import keep_freed_chunks, keep_freed_memory
from learner_jax.runtime.cache_folder import cache_folder
from learner_jax.runtime.code import Code, this_code
from learner_jax.runtime.crash_points import crash_point
from learner_jax.runtime.disk_errors import at, disk_failure, tell_once
from learner_jax.runtime.doors import Door, DoorError, load_object, raised, require_call, source_of
from learner_jax.runtime.durable_files import rename_durably, sync_path, sync_tree, write_durably, write_whole
from learner_jax.runtime.errors import CANNOT_HEAL_STATUS, WeirError
from learner_jax.runtime.late_imports import import_when_used
from learner_jax.runtime.patterns import Pattern, PatternError, SlowPatternError
from learner_jax.runtime.plain_files import (
    FILE_MODE,
    FOLDER_MODE,
    PLAIN_NAME,
    SHARED_MODE,
    PlainFileError,
    create_plain,
    is_folder,
    is_own_regular,
    is_regular,
    make_folder,
    open_plain,
    opened_folder,
    read_at,
    read_plain,
)
from learner_jax.runtime.spans import NO_SPANS, NoSpans, Spans
from learner_jax.runtime.standing_wait import StandingWait
from learner_jax.runtime.text import printable
from learner_jax.runtime.waits import Wait, Waits, WaitState, WaitTimeoutError

__all__ = [
    "CANNOT_HEAL_STATUS",
    "FILE_MODE",
    "FOLDER_MODE",
    "NO_SPANS",
    "PLAIN_NAME",
    "SHARED_MODE",
    "Code",
    "Door",
    "DoorError",
    "NoSpans",
    "Pattern",
    "PatternError",
    "PlainFileError",
    "SlowPatternError",
    "Spans",
    "StandingWait",
    "Wait",
    "WaitState",
    "WaitTimeoutError",
    "Waits",
    "WeirError",
    "at",
    "cache_folder",
    "crash_point",
    "create_plain",
    "disk_failure",
    "import_when_used",
    "is_folder",
    "is_own_regular",
    "is_regular",
    "keep_freed_chunks",
    "keep_freed_memory",
    "load_object",
    "make_folder",
    "open_plain",
    "opened_folder",
    "printable",
    "raised",
    "read_at",
    "read_plain",
    "rename_durably",
    "require_call",
    "source_of",
    "sync_path",
    "sync_tree",
    "tell_once",
    "this_code",
    "write_durably",
    "write_whole",
]
