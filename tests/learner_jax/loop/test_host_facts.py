"""What hosts compare of each other: settings by name, variables of JAX's, code, and the files of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner_jax.loop import host_facts
from learner_jax.loop.host_facts import code_facts, environment_facts, flat, folder_facts


def test_settings_are_named_in_full_and_some_left_out() -> None:
    tree = {"a": {"b": 1, "c": {"d": [2]}}, "e": "text", "f": {}}
    assert flat(tree) == {"a.b": "1", "a.c.d": "[2]", "e": '"text"'}
    assert flat(tree, without=["a.c.d", "e"]) == {"a.b": "1"}
    assert flat(tree, without=["a.c"]) == {"a.b": "1", "e": '"text"'}
    assert flat(tree, without=["c", "d", "b"]) == flat(tree)


def test_variables_that_differ_by_host_do_not_count() -> None:
    assert environment_facts({"JAX_A": "1", "JAX_PROCESS_ID": "0", "JAX_LOCAL_X": "", "XLA_FLAGS": ""}) == {
        "JAX_A": "1"
    }


def test_other_sources_are_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(host_facts, "__file__", str(tmp_path / "x" / "y" / "z.py"))
    found = set()
    for name, text in (("a/1.py", ""), ("a/2.py", ""), ("a/b/2.py", ""), ("a/2.py", "x"), ("a/2.txt", "")):
        (tmp_path / name).write_text(text)
        found.add(code_facts(["a"])["sources"])
    assert len(found) == 4  # text files are no sources
    assert "commit" not in code_facts(["a"]) or code_facts(["a"])["commit"]
    assert len(code_facts(["a"])["sources"]) == 16
    assert code_facts(["a"])["jax"]


def test_files_of_a_model_are_compared_and_no_others(tmp_path: Path) -> None:
    for name in ("config.json", "README.md", "a.png", "a.pdf", ".hidden", ".cache/x.json", "deep/w.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    facts = folder_facts(tmp_path)
    assert facts.keys() == {"config.json", "deep/w.safetensors"}
    assert facts["config.json"].startswith("1 bytes, ")


@pytest.mark.parametrize("place", [0, 255, 256 - 4, 36])
def test_large_files_are_sampled_from_their_first_byte_to_their_last(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 256 bytes eight samples of four: at 0, 36, 72, ... and 252."""
    monkeypatch.setattr(host_facts, "_READ_WHOLE_BYTES", 255)
    monkeypatch.setattr(host_facts, "_SAMPLES", 8)
    monkeypatch.setattr(host_facts, "_SAMPLE_BYTES", 4)
    data = bytearray(256)
    (tmp_path / "w").write_bytes(data)
    before = folder_facts(tmp_path)
    data[place] = 1
    (tmp_path / "w").write_bytes(data)
    assert folder_facts(tmp_path) != before
    data[place], data[20] = 0, 1  # between two samples
    (tmp_path / "w").write_bytes(data)
    assert folder_facts(tmp_path) == before
    monkeypatch.setattr(host_facts, "_READ_WHOLE_BYTES", 256)
    assert folder_facts(tmp_path) != before
