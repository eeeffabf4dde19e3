"""A model folder from the Hugging Face hub: fetched into its cache, and of one commit for all of a run's life."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from configs.paths import HubModel
from learner_jax.runtime import WeirError, write_durably

#: Beside the run's config.toml: which commit model.path stood for when the run began.
RECORD = "model.json"
#: Files of a model folder. Repositories hold other forms of the same weights as well, which vLLM might read.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_OTHER_FORMS = ["consolidated*", "original/*", "onnx/*", "metal/*"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 10.0


class HubModelError(WeirError, RuntimeError):
    """The hub has no such model for this user, or what the run recorded does not fit."""

    can_heal = False


class HubUnreachableError(WeirError, OSError):
    """The hub can't be reached, and the model is not in the cache."""


def hub_folder(model: HubModel, directory: Path) -> Path:
    """The folder of a model in the hub's cache, fetched if it is not there.

    Once the run's directory exists, a record in it keeps the commit that the revision stood for, whatever becomes of
    the branch or tag. Several processes may ask at the same time.

    Raises:
      HubModelError: there is no such repository or revision, or it is closed to this user.
      HubUnreachableError: the hub does not answer, or HF_HUB_OFFLINE forbids to ask it, and the cache lacks the model.
    """
    record = directory / RECORD
    commit = _recorded(record, model)
    folder = _fetched(model, commit or model.revision)
    if commit is None and directory.is_dir():
        _write_once(record, {"repository": model.repository, "revision": model.revision, "commit": folder.name})
        commit = _recorded(record, model)
        if commit is not None and commit != folder.name:  # another process was first, just before the branch moved
            folder = _fetched(model, commit)
    return folder


def _fetched(model: HubModel, revision: str) -> Path:
    import huggingface_hub  # half a second
    from huggingface_hub import errors

    what = f"{model.repository}@{revision}"
    try:
        found = huggingface_hub.snapshot_download(
            model.repository,
            revision=revision,
            allow_patterns=_WANTED,
            ignore_patterns=_OTHER_FORMS,
            etag_timeout=_TIMEOUT_S,
        )
    except errors.GatedRepoError as error:
        raise HubModelError(
            f"model.path: {what} is gated: accept its terms on the hub, and set HF_TOKEN to a token of that account "
            f"({_status(error)})"
        ) from None
    except errors.RepositoryNotFoundError as error:
        raise HubModelError(
            f"model.path: the hub shows no repository {model.repository}: correct it, or set HF_TOKEN if it is private "
            f"({_status(error)})"
        ) from None
    except errors.RevisionNotFoundError:
        raise HubModelError(
            f"model.path: {model.repository} has no branch, tag or commit {revision}: correct what stands after the @"
        ) from None
    except (errors.HFValidationError, ValueError) as error:
        raise HubModelError(f"model.path: {what} can't be fetched: {error}") from None
    except OSError as error:  # all errors of the hub's client are
        raise HubUnreachableError(_away(what, error)) from None
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):
            raise
        raise HubUnreachableError(_away(what, error)) from None
    return Path(found)


def _away(what: str, error: Exception) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return f"model.path: {what} is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it: fetch it before"
    said = " ".join(str(error).split())[:300]
    return f"model.path: {what} can't be fetched, and is not in the hub's cache: {type(error).__name__}: {said}"


def _status(error: Any) -> str:
    return f"status {getattr(error.response, 'status_code', 'unknown')}"


def _recorded(record: Path, model: HubModel) -> str | None:
    """The commit that a run began from, None before it is known."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise HubModelError(f"{record} is damaged ({error}): restore it, or begin another run") from None
    known = found.get("commit") if isinstance(found, dict) else None
    if not isinstance(known, str) or not _COMMIT.fullmatch(known):
        raise HubModelError(f"{record} holds no commit of 40 hexadecimal digits: restore it, or begin another run")
    if (found.get("repository"), found.get("revision")) != (model.repository, model.revision):
        raise HubModelError(
            f"{record} is of {found.get('repository')}@{found.get('revision')}, and model.path is {model}: a run keeps "
            f"its model"
        )
    return known


def _write_once(record: Path, content: Mapping[str, str]) -> None:
    """Writes the record unless another process has."""
    partial = record.with_name(f".{record.name}.{secrets.token_hex(8)}")
    write_durably(partial, json.dumps(content, indent=1) + "\n")
    try:
        with suppress(FileExistsError):
            os.link(partial, record)
    finally:
        partial.unlink()
