"""Compiled programs are found again by the next process, and a folder that others can write to is never read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from learner_jax.training.compiled_programs import keep_compiled, kind_of_machine
from serving_bridge.processes import with_own_packages

PROGRAM = """
import json
import jax, jax.numpy as jnp
from learner_jax.training import keep_compiled
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None)
said = []
folder = keep_compiled(said.append, least_s=0.0)
value = jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((8, 8)))
print(json.dumps({"folder": folder and str(folder), "said": said, "hits": len(hits), "value": float(value)}))
"""


def compiled(cache: Path) -> dict[str, object]:
    environment = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env=with_own_packages(environment),
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    first = compiled(folder)
    assert (first["said"], first["hits"]) == ([], 0)
    return folder


def test_a_second_process_finds_what_the_first_compiled(cache: Path) -> None:
    second = compiled(cache)
    folder = cache / "weir" / "compiled" / kind_of_machine()
    assert second["folder"] == str(folder)
    assert second["hits"]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_program_that_was_cut_off_is_compiled_anew(cache: Path) -> None:
    expected = compiled(cache)["value"]
    entries = list((cache / "weir" / "compiled").rglob("*-cache"))
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    assert compiled(cache)["value"] == expected


@pytest.fixture
def unset() -> Iterator[None]:
    """No folder is named, as far as this process knows."""
    named = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", named)


def refused(cache: Path) -> str:
    said: list[str] = []
    assert keep_compiled(said.append, {"XDG_CACHE_HOME": str(cache)}) is None
    assert jax.config.jax_compilation_cache_dir is None
    (reason,) = said
    return reason


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize("writable", ["compiled", "compiled/KIND"])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, writable: str) -> None:
    place = tmp_path / "weir" / "compiled" / kind_of_machine()
    place.mkdir(parents=True, mode=0o700)
    (tmp_path / "weir" / writable.replace("KIND", kind_of_machine())).chmod(0o777)
    assert "others can't write to" in refused(tmp_path)


@pytest.mark.usefixtures("unset")
def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "weir" / "compiled").mkdir(parents=True, mode=0o700)
    (tmp_path / "weir" / "compiled").chmod(0o700)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "weir" / "compiled" / kind_of_machine()).symlink_to(tmp_path / "elsewhere")
    assert "must be a folder of this user's" in refused(tmp_path)


@pytest.mark.usefixtures("unset")
def test_a_place_that_can_t_be_made_costs_the_cache_and_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "weir").write_text("in the way")
    assert "compiled programs are not kept" in refused(tmp_path)


def test_a_folder_that_jax_was_told_of_is_left_as_it_is(tmp_path: Path) -> None:
    said: list[str] = []
    folder = keep_compiled(said.append, {"XDG_CACHE_HOME": str(tmp_path)})
    assert (folder, said) == (Path(jax.config.jax_compilation_cache_dir), [])
    assert not (tmp_path / "weir").exists()


def test_machines_of_another_kind_have_a_folder_of_their_own(tmp_path: Path) -> None:
    told = "processor : 0\nmodel name : A\nflags : sse avx2\ncpu MHz : {}\n\nprocessor : 1\n"
    names = []
    for number, text in enumerate((told.format(1), told.format(2), told.format(1).replace("avx2", "avx512f"))):
        (tmp_path / str(number)).write_text(text)
        names.append(kind_of_machine(tmp_path / str(number)))
    assert names[0] == names[1] != names[2]
    assert kind_of_machine(tmp_path / "none")
