"""Every command that a person starts meets missing, wrong and odd input with one clear line, at once."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.load import load_config, save_config
from tests.conftest import REPOSITORY

DEMO = str(REPOSITORY / "configs" / "demo.toml")
STORIES = str(REPOSITORY / "configs" / "stories.toml")

#: Stands for a place in the test's folder.
PLACES = ("MISSING", "EMPTY", "FILE", "UNDER", "BINARY", "RUN", "NOCONFIG", "BROKEN", "HUGE", "ODD", "JUNK")


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Folders and files as people give them by mistake."""
    made = {name: tmp_path / name.lower() for name in PLACES}
    for name in ("EMPTY", "RUN", "NOCONFIG", "BROKEN", "JUNK"):
        made[name].mkdir()
    made["FILE"].write_text("just text\n")
    made["UNDER"] = made["FILE"] / "below"
    made["BINARY"].write_bytes(bytes(range(256)) * 40)
    made["HUGE"] = tmp_path / ("x" * 300)
    made["ODD"] = tmp_path / "odd\x1b[31m\udcff"
    save_config(load_config(DEMO, [f"run.directory={made['RUN']}"]), made["RUN"] / "config.toml")
    (made["NOCONFIG"] / "metrics.jsonl").write_text("{}\n")
    (made["BROKEN"] / "config.toml").write_text("[run\n")
    save_config(load_config(DEMO, [f"run.directory={made['JUNK']}"]), made["JUNK"] / "config.toml")
    (made["JUNK"] / "metrics.jsonl").write_bytes(b'{"event": 5}\n[]\nnull\n\xff\xfe\n{"t": 1}\n')
    for name in ("state.db", "weights", "checkpoints", "blobs", "summary.json"):
        (made["JUNK"] / name).write_bytes(b"\x00not what you think")
    return made


CONFIGURED = (
    "learner",
    "rollout",
    "serve",
    "gateway",
    "train",
    "launch --on local",
    "database migrate",
    "evaluate --model EMPTY",
)

CASES = [
    *(f"new {p}" for p in ("FILE", "UNDER")),
    "completion tcsh",
    "settings no.such",
    *(f"safety check --file {p} --out NEW" for p in ("MISSING", "UNDER")),
    "safety check --file FILE --out UNDER",
    *(f"safety measure --data {p}" for p in ("MISSING", "EMPTY", "FILE")),
    *(f"safety verify {p}" for p in ("MISSING", "EMPTY", "FILE", "UNDER", "ODD")),
    *(f"safety train --data {p} --out NEW" for p in ("MISSING", "EMPTY", "FILE")),
    *(f"safety serve --guard {p}" for p in ("MISSING", "EMPTY", "FILE", "BINARY")),
    "safety",
    *(f"confidence fit --answers {p} --out NEW" for p in ("MISSING", "EMPTY", "FILE", "UNDER", "BINARY", "ODD")),
    "confidence compare --answers MISSING",
    f"confidence collect --config {DEMO} --out NEW --url http://127.0.0.1:9/v1",
    "metrics no_such",
    "command trian",
    *(f"{tool} --config {p}" for tool in CONFIGURED for p in ("MISSING", "EMPTY", "FILE", "BINARY", "HUGE", "ODD")),
    *(f"data --config {p}" for p in ("MISSING", "EMPTY", "FILE", "BINARY", "HUGE", "ODD")),
    *(
        f"data --config {DEMO} --set task.provider=rows --set task.reward=exact --set task.data={p}"
        for p in ("MISSING", "EMPTY", "FILE", "UNDER", "BINARY", "HUGE", "no_such:rows")
    ),
    f"data --config {DEMO} --rows -1",
    *(f"{tool} --config {DEMO} --set run.directory={p}" for tool in CONFIGURED for p in ("FILE", "ODD")),
    *(f"{tool} --config {DEMO} --set {s}" for tool in ("train", "serve") for s in ("nonsense", "a.b=1", "run.name=.")),
    *(
        f"{tool} --config {STORIES} --set run.directory=RUN2 --set model.path={place}"
        for tool in ("learner", "rollout", "serve", "train")
        for place in ("MISSING", "EMPTY", "UNDER", "~nobody/x")
    ),
    *(f"train --config {DEMO} --set run.directory=RUN2 --set store.{k}=FILE" for k in ("weights", "blobs")),
    f"train --config {DEMO} --set run.directory=RUN2 --set store.database=BINARY",
    f"train --config {DEMO} --set run.directory=RUN2 --set store.database=EMPTY",
    f"train --config {DEMO} --set run.directory=RUN2 --set store.database=UNDER",
    f"train --config {DEMO} --set run.directory=RUN2 --set store.database=postgresql://nobody@127.0.0.1:1/none",
    f"train --config {DEMO} --set run.directory=RUN2 --set serving.host=no.such.host.invalid",
    f"train --config {DEMO} --set run.directory=RUN2 --set task.name=no_such",
    f"train --config {STORIES} --set run.directory=RUN2 --set model.path=MISSING --set task.path=FILE --profile x",
    f"learner --config {STORIES} --set model.path=EMPTY --set run.directory=RUN2 --warm-start",
    *(f"evaluate --config {DEMO} --set run.directory=RUN2 --model {p}" for p in ("MISSING", "EMPTY", "UNDER", "HUGE")),
    *(f"evaluate --suite {p} --out NEW --model EMPTY" for p in ("MISSING", "EMPTY", "FILE", "BINARY", "HUGE", "ODD")),
    *(f"evaluate --suite stories --out NEW --model {p}" for p in ("MISSING", "EMPTY", "FILE", "UNDER", "HUGE", "ODD")),
    *(
        f"evaluate --suite stories --out NEW --{source} {p}"
        for source in ("checkpoint", "weights")
        for p in ("MISSING", "EMPTY", "FILE", "JUNK")
    ),
    *(f"evaluate --suite stories --out {p} --model EMPTY" for p in ("FILE", "UNDER", "HUGE")),
    *(
        f"evaluate --suite stories --out NEW --endpoint {more}"
        for more in (
            "http://127.0.0.1:9",
            "nonsense",
            "FILE",
            "nonsense --endpoint-model m",
            "http://127.0.0.1:9 --endpoint-model m --tries 1",
            "http://127.0.0.1:9 --endpoint-model m --api-key-env NOT_SET_ANYWHERE",
        )
    ),
    "evaluate --suite stories --model EMPTY",
    *(f"score --verifier exact --answers {p}" for p in ("MISSING", "EMPTY", "UNDER", "HUGE", "ODD")),
    *(f"score --verifier exact --answers FILE --out {p}" for p in ("EMPTY", "UNDER", "HUGE", "FILE")),
    *(f"score --config {p} --answers FILE" for p in ("MISSING", "EMPTY", "FILE", "BINARY", "HUGE", "ODD")),
    "score --verifier nobody --answers FILE",
    *(f"registry list {p}" for p in ("MISSING", "FILE", "UNDER", "HUGE")),
    *(f"registry add NEW --run {p}" for p in ("MISSING", "EMPTY", "FILE", "NOCONFIG", "BROKEN", "ODD")),
    *(f"registry import NEW --model {p}" for p in ("MISSING", "EMPTY", "FILE", "UNDER", "ODD")),
    "registry move EMPTY stable=1 --reason x",
    "registry show EMPTY stable --database postgresql://nobody@127.0.0.1:1/none",
    *(f"canary {command} {p}" for command in ("status", "run --once") for p in ("MISSING", "FILE", "UNDER", "HUGE")),
    *(f"canary start EMPTY 1 --reason x --policy {p}" for p in ("MISSING", "EMPTY", "FILE", "BINARY", "HUGE", "ODD")),
    *(f"canary observe EMPTY --file {p}" for p in ("MISSING", "EMPTY", "FILE", "BINARY", "HUGE")),
    *(f"canary page EMPTY {o}" for o in ("--port 99999", "--host 0.0.0.0", "--token-env NOT_SET_ANYWHERE")),
    *("canary start EMPTY stable --reason x", "canary replay EMPTY 1", "canary abort EMPTY", "canary"),
    *(
        f"gate --config {DEMO} --gate {p} --registry EMPTY --candidate 1 --out NEW"
        for p in ("MISSING", "EMPTY", "FILE", "UNDER", "BINARY", "HUGE", "ODD")
    ),
    *(f"evaluate report {p}" for p in ("MISSING", "EMPTY", "FILE", "UNDER", "BINARY", "HUGE", "ODD", "JUNK")),
    *(f"evaluate compare {p} {p}" for p in ("MISSING", "EMPTY", "FILE", "UNDER", "BINARY", "HUGE", "ODD", "JUNK")),
    *(f"evaluate contamination --suite stories --contamination {p}" for p in ("MISSING", "EMPTY", "FILE", "HUGE")),
    *(
        f"{tool} {place}"
        for tool in ("view", "report", "queue", "weights list", "weights watch --once")
        for place in ("MISSING", "EMPTY", "FILE", "UNDER", "BINARY", "NOCONFIG", "BROKEN", "HUGE", "ODD")
    ),
    *(
        f"view {place} --web --port 0"
        for place in ("MISSING", "EMPTY", "FILE", "UNDER", "BINARY", "NOCONFIG", "BROKEN", "HUGE", "ODD")
    ),
    "view RUN RUN",
    "view RUN --port 1",
    "view RUN --web --port 99999",
    "view RUN --web --host 0.0.0.0",
    "view RUN --web --host no.such.host.invalid",
    "view RUN --web --token-env NOT_SET_ANYWHERE",
    *(f"view RUN --web --token-file {place}" for place in ("MISSING", "EMPTY", "FILE", "BINARY", "HUGE", "ODD")),
    "view RUN --web --allow-host runs.example.org",
    *(f"fleet {p} status" for p in ("MISSING", "EMPTY", "FILE", "UNDER", "BINARY", "BROKEN", "HUGE", "ODD")),
    *("report JUNK", "queue JUNK", "queue JUNK dead", "weights list JUNK/weights", "weights list JUNK"),
    "fleet RUN scale 2",
    "fleet RUN scale two",
    "fleet RUN restart --fleet nobody",
    "queue postgresql://nobody@127.0.0.1:1/none",
    "queue mysql://nobody@127.0.0.1/none",
    "queue RUN requeue",
    "queue RUN ingress",
    "queue RUN ingress --token-env NOT_SET_ANYWHERE",
    *(f"queue JUNK reward {place}" for place in ("MISSING", "EMPTY", "FILE")),
    *(
        f"tenants {place} list"
        for place in ("MISSING", "EMPTY", "FILE", "UNDER", "BINARY", "NOCONFIG", "BROKEN", "HUGE", "ODD", "JUNK")
    ),
    *(f"tenants {place} add acme" for place in ("EMPTY", "FILE", "UNDER", "BINARY", "HUGE", "JUNK")),
    "tenants MISSING add a/b",
    "tenants MISSING add acme --class gold",
    "tenants MISSING add acme --weight 0",
    *(f"tenants MISSING key create acme --secret {place}" for place in ("FILE", "UNDER", "HUGE", "ODD")),
    "tenants MISSING key create acme",
    "tenants postgresql://nobody@127.0.0.1:1/none list",
    *(
        f"sessions {place} list"
        for place in ("MISSING", "EMPTY", "FILE", "UNDER", "BINARY", "NOCONFIG", "BROKEN", "HUGE", "ODD", "JUNK")
    ),
    "sessions postgresql://nobody@127.0.0.1:1/none list",
    *(
        f"feedback {place} list"
        for place in ("MISSING", "EMPTY", "FILE", "UNDER", "BINARY", "NOCONFIG", "BROKEN", "HUGE", "ODD", "JUNK")
    ),
    "feedback postgresql://nobody@127.0.0.1:1/none list",
    "weights verify RUN 99",
    "weights show RUN x",
    "weights rollback EMPTY 3",
    *(f"convert to-hf --checkpoint {p} --model EMPTY --out NEW" for p in ("MISSING", "EMPTY", "FILE", "UNDER", "JUNK")),
    *(f"convert from-hf --model {p} --out NEW" for p in ("MISSING", "EMPTY", "FILE", "UNDER", "HUGE", "JUNK")),
    *(f"convert from-gguf --file {p} --out NEW" for p in ("MISSING", "EMPTY", "FILE", "UNDER", "HUGE", "JUNK")),
    *(f"convert from-hf --model EMPTY --out {p}" for p in ("FILE", "UNDER", "JUNK", "HUGE")),
    *(f"convert verify --checkpoint {p} --hf {p}" for p in ("MISSING", "EMPTY", "FILE", "JUNK")),
    "convert to-hf --checkpoint EMPTY --out NEW --max-shard-size nan",
    *(f"plan memory --model {p}" for p in ("MISSING", "EMPTY", "FILE", "UNDER", "BINARY", "HUGE", "BROKEN")),
    *(f"plan shapes --shapes {p}" for p in ("MISSING", "EMPTY", "FILE", "BINARY", "UNDER")),
    *(f"plan scale --inputs {p}" for p in ("MISSING", "EMPTY", "FILE", "BINARY", "UNDER")),
    *(f"plan scale --model {p}" for p in ("MISSING", "EMPTY", "FILE", "BROKEN")),
    "plan memory --model EMPTY --config FILE",
    "plan memory --model EMPTY --mesh fsdp=0",
    "bench overlap --config MISSING",
    "bench scrape --config MISSING",
    "bench scrape --steps 1",
    "bench nothing",
    *(f"bench end_to_end --model {p} --sides weir" for p in ("MISSING", "FILE", "EMPTY", "HUGE")),
    "bench end_to_end --workload stories --sides weir",
    "bench end_to_end --model EMPTY --sides weir base",
    "bench end_to_end --model EMPTY --sides weir --set rollout.nothing=1",
    "study staleness --seeds 0",
    *(f"study learning --seeds 1 --steps 1 --workers 1 --model {p}" for p in ("MISSING", "FILE")),
    *(f"study learning --model EMPTY --only-report --whole-runs {p}" for p in ("MISSING", "EMPTY", "FILE", "BINARY")),
    *(f"testing.suite {p}" for p in ("MISSING", "EMPTY", "FILE", "UNDER", "BINARY", "HUGE", "ODD")),
    *(f"launch {o} {p}" for o in ("status", "logs", "stop", "resume") for p in ("MISSING", "FILE", "BROKEN", "ODD")),
    *("launch stop RUN", "launch logs RUN nobody", "launch --on moon --config demo", "launch --on local"),
    *("role", "role --need MISSING -- true", "role --variable A=file:/no/such -- true", "role -- /no/such/program"),
    *("train", "learner", "evaluate", "queue", "fleet", "weights", "convert", "plan", "view", "report", "database"),
    *("score", "tenants", "sessions", "feedback"),
]  # fmt: skip


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder of its own, whose processes can't be changed for the tests that follow."""
    monkeypatch.chdir(tmp_path)
    affinity = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, affinity)


def arguments(case: str, places: dict[str, Path], tmp_path: Path) -> list[str]:
    for name in sorted(PLACES, key=len, reverse=True):
        case = case.replace(f"{name}2", "\0NEW").replace(name, str(places[name]))
    return [
        part.replace("\0NEW", str(tmp_path / "new")) for part in case.replace(" NEW", f" {tmp_path / 'out'}").split(" ")
    ]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_in_one_clear_line(
    case: str,
    places: dict[str, Path],
    quiet: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    tool, *given = arguments(case, places, tmp_path)
    name = f"tools.{tool}"
    module = importlib.import_module(
        f"{name}.__main__" if tool in ("bench", "study", "testing.suite", "launch") else name
    )
    monkeypatch.setattr(sys, "argv", [tool, *given])
    with pytest.raises(SystemExit) as ended:
        module.main()
    told = capsys.readouterr().err
    assert ended.value.code not in (0, None), told
    assert "Traceback" not in told
    assert "error: " in told or isinstance(ended.value.code, str), told
    assert told.replace("\n", "").replace("\t", "").isprintable(), told
    assert not (tmp_path / "new" / "state.db").exists()


def test_every_command_is_among_them() -> None:
    commands = {path.stem for path in (REPOSITORY / "tools").glob("*.py") if "def main(" in path.read_text()}
    assert commands - {"doctor"} <= {case.split()[0] for case in CASES}, "doctor takes no input"
    assert json.dumps(CASES)
