"""Models of the hub: fetched once, of one commit for a run's life, and refused in one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.load import ConfigError, load_config
from configs.paths import HubModel, hub_model
from tests.conftest import REPOSITORY
from tests.support.hub_server import Hub, running_hub
from tools.assembly import base_model, run_paths
from tools.assembly.hub_model import RECORD, HubModelError, HubUnreachableError, hub_folder

MODEL = HubModel("org/tiny", "main")
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "original/model.safetensors": b"x", "notes.md": b"x"}
STORIES = REPOSITORY / "configs" / "stories.toml"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    with running_hub() as server:
        # As HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE have it where the process begins.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield server


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    return directory


def test_a_run_keeps_the_commit_that_it_began_from(hub: Hub, run: Path) -> None:
    first = hub.push(FILES)
    folder = hub_folder(MODEL, run)
    assert folder.name == first
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    record = {"repository": "org/tiny", "revision": "main", "commit": first}
    assert json.loads((run / RECORD).read_text()) == record
    second = hub.push({**FILES, "model.safetensors": b"newer"})
    assert hub_folder(MODEL, run) == folder
    assert hub_folder(MODEL, run.parent / "no such run").name == second
    assert os.listdir(run) == [RECORD]


def test_what_is_in_the_cache_is_not_fetched_again_and_serves_offline(
    hub: Hub, run: Path, request: pytest.FixtureRequest
) -> None:
    hub.push(FILES)
    folder = hub_folder(MODEL, run)
    hub.requests.clear()
    assert hub_folder(MODEL, run) == folder
    assert hub.requests == [], "the commit is known, and so are its files"
    request.getfixturevalue("offline")
    assert hub_folder(MODEL, run) == folder
    assert hub_folder(MODEL, run.parent / "no such run") == folder
    with pytest.raises(HubUnreachableError, match="org/tiny@other is not in the hub's cache, and HF_HUB_OFFLINE"):
        hub_folder(HubModel("org/tiny", "other"), run.parent / "no such run")


@pytest.mark.parametrize(
    ("model", "refuses", "message"),
    [
        (HubModel("org/none", "main"), None, r"shows no repository org/none: correct it, or set HF_TOKEN"),
        (HubModel("org/tiny", "v9"), None, r"org/tiny has no branch, tag or commit v9"),
        (MODEL, (403, "GatedRepo"), r"org/tiny@main is gated: accept its terms on the hub, and set HF_TOKEN .*403"),
        (MODEL, (401, "RepoNotFound"), r"shows no repository org/tiny: .*401"),
    ],
    ids=["repository", "revision", "gated", "private"],
)
def test_what_the_hub_does_not_give_is_told_in_a_line(
    hub: Hub, run: Path, model: HubModel, refuses: tuple[int, str] | None, message: str
) -> None:
    hub.push(FILES)
    hub.refuses = refuses
    with pytest.raises(HubModelError, match=message) as caught:
        hub_folder(model, run)
    assert "\n" not in str(caught.value)
    assert os.listdir(run) == []


def test_a_hub_that_is_away_is_told_in_a_line(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(HubUnreachableError, match="org/tiny@main can't be fetched, and is not in the hub's") as caught:
        hub_folder(MODEL, run)
    assert caught.value.can_heal
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "holds no commit"),
        ('{"commit": "../../etc"}', "holds no commit"),
        (f'{{"repository": "a/b", "revision": "main", "commit": "{"0" * 40}"}}', "is of a/b@main, and model.path is"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(hub: Hub, run: Path, content: str, message: str) -> None:
    hub.push(FILES)
    (run / RECORD).write_text(content)
    with pytest.raises(HubModelError, match=message):
        hub_folder(MODEL, run)


def test_the_setting_names_the_hub_only_with_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_model("org/name@v1.0") == HubModel("org/name", "v1.0")
    assert hub_model("org/name@refs/pr/1") == HubModel("org/name", "refs/pr/1")
    for text in ("org/name", "/org/name@main", "../name@main", "a/b/c@main", "name@main", "org/name@", "~/x@main"):
        assert hub_model(text) is None
    config = load_config(STORIES, ["model.path=org/name@main"])
    assert config.model.path == "org/name@main"
    (tmp_path / "org" / "name@main").mkdir(parents=True)
    assert load_config(STORIES, ["model.path=org/name@main"]).model.path == str(tmp_path / "org" / "name@main")


def test_a_process_asks_the_hub_that_the_environment_names(hub: Hub, tmp_path: Path, run: Path) -> None:
    commit = hub.push(FILES)
    program = f"""
from pathlib import Path
from configs.paths import HubModel
from tools.assembly.hub_model import hub_folder
print(hub_folder(HubModel("org/tiny", "main"), Path({str(run)!r})))
"""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.strip().endswith(commit), done.stderr
    assert {token for _, _, token in hub.requests} == {"Bearer hf_secret"}
    assert "hf_secret" not in done.stdout + done.stderr + (run / RECORD).read_text()


def test_the_run_begins_from_the_fetched_folder(hub: Hub, run: Path) -> None:
    commit = hub.push(FILES)
    config = load_config(STORIES, ["model.path=org/tiny@main", f"run.directory={run}"])
    assert base_model.base_model_dir(config, run_paths(config)).name == commit
    with pytest.raises(ConfigError):
        load_config(STORIES, ["model.path=s3://bucket/x"])
