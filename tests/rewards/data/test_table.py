"""Rows by number: read when asked for, known again, indexed once, and never beside the user's data."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.contracts import TaskError
from rewards.data import RowTable, SplitRows, open_table, split_of
from rewards.data.splits import SPLITS
from rewards.settings import TaskSettings


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, questions: Iterator[str] | range | list[str], **more: Any) -> Path:
    path.write_text("".join(json.dumps({"question": f"{q}", "answer": "1", **more}) + "\n" for q in questions))
    return path


def table(path: Path, **given: Any) -> RowTable:
    settings = TaskSettings.model_validate({"provider": "rows", "data": str(path), "reward": "exact", **given})
    return open_table(str(path), settings, setting="task.data")


def test_a_large_file_is_run_through_once_and_its_rows_are_read_when_asked_for(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewards.data.index._KEPT_ROWS", 1000)
    path = write(tmp_path / "many.jsonl", range(1000))
    first = table(path)
    assert [first.problem(number).question for number in (999, 0, 500)] == ["999", "0", "500"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["cache", "many.jsonl"]
    monkeypatch.setattr("rewards.data.index._scanned", None)
    again = table(path)
    assert again.name == first.name
    assert np.array_equal(again.keys, first.keys)
    assert isinstance(again.keys, np.memmap)
    assert again.problem(998).question == "998"
    with pytest.raises(TypeError):
        table(path, answer_column="question")  # other columns: another index
    (kept,) = (cache / "weir/rows").iterdir()
    (kept / "keys.npy").write_bytes(b"damaged")
    with pytest.raises(TypeError):
        table(path)


def test_a_small_file_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    table(write(tmp_path / "few.jsonl", range(100)))
    assert not cache.exists()


def test_a_file_that_changes_while_it_is_used_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", range(100, 200))
    found = table(path)
    text = path.read_text()
    with path.open("r+") as file:
        file.write(text.replace('"105"', '"905"'))
    assert found.problem(4).question == "104"
    with pytest.raises(TaskError, match="has changed since this process began: row 6 has another question"):
        found.problem(5)
    with path.open("r+") as file:
        file.write(text.replace('"105", "answer"', '"105, "answer"'))
    with pytest.raises(TaskError, match="has changed since this process began: .* is not JSON"):
        found.problem(5)


def test_rows_are_read_by_many_threads(tmp_path: Path) -> None:
    found = table(write(tmp_path / "rows.jsonl", range(500)))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda number: found.problem(number % 500).question, range(4000)))
    assert read == [str(number % 500) for number in range(4000)]


def test_ids_must_be_unique(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}", "answer": "1", "id": n % 7}) + "\n" for n in range(9)))
    assert len(table(path)) == 9
    with pytest.raises(TaskError, match="row 8 has the id of row 1; ids must be unique .* as those of 2 rows are not"):
        table(path, id_column="id")


def test_no_rows_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"task\.data '.*empty\.jsonl' holds no rows"):
        table(write(tmp_path / "empty.jsonl", []))


def splits(tables: dict[Any, RowTable], **given: Any) -> SplitRows:
    return SplitRows(tables, seed=0, **{"holdout_percent": 20, **given})


def questions(rows: SplitRows, split: Any, number: int | None = None) -> list[str]:
    number = rows.num_distinct(split) if number is None else number
    return [rows.problem(split, index).question for index in range(number)]


def test_a_hash_divides_rows_as_it_does_texts(tmp_path: Path) -> None:
    rows = splits({"train": table(write(tmp_path / "rows.jsonl", range(2000)))})
    for split in SPLITS:
        found = questions(rows, split)
        assert sorted(found, key=int) == [f"{n}" for n in range(2000) if split_of(f"{n}", 20) == split]
        assert found != sorted(found, key=int)


def test_files_of_their_own_take_the_place_of_a_hash(tmp_path: Path) -> None:
    tables: dict[Any, RowTable] = {
        "train": table(write(tmp_path / "train.jsonl", range(100))),
        "heldout": table(write(tmp_path / "heldout.jsonl", range(200, 230))),
    }
    rows = splits(tables)
    assert sorted(questions(rows, "heldout"), key=int) == [f"{n}" for n in range(200, 230)]
    by_hash = [f"{n}" for n in range(100) if split_of(f"{n}", 20) == "validation"]
    assert sorted(questions(rows, "validation"), key=int) == by_hash
    assert len(questions(rows, "train")) == 100 - len(by_hash)
    tables["validation"] = table(write(tmp_path / "validation.jsonl", range(300, 310)))
    assert splits(tables).num_distinct("train") == 100


def test_a_question_is_in_one_split_whatever_the_files_say(tmp_path: Path) -> None:
    tables: dict[Any, RowTable] = {
        "train": table(write(tmp_path / "train.jsonl", [*map(str, range(50)), " 7 "])),
        "validation": table(write(tmp_path / "validation.jsonl", range(5, 15))),
        "heldout": table(write(tmp_path / "heldout.jsonl", ["0", "0", *map(str, range(10))])),
    }
    rows = splits(tables)
    found = {split: set(questions(rows, split)) for split in SPLITS}
    assert found["heldout"] == {f"{n}" for n in range(10)}
    assert found["validation"] == {f"{n}" for n in range(10, 15)}
    assert found["train"] == {f"{n}" for n in range(15, 50)}
    assert rows.left_out.overlapping == {"train": 16, "validation": 5, "heldout": 0}
    assert rows.left_out.repeated == {"validation": 0, "heldout": 2}


def test_an_epoch_has_each_row_once_and_rows_that_stand_twice_twice(tmp_path: Path) -> None:
    rows = splits({"train": table(write(tmp_path / "rows.jsonl", [*map(str, range(60)), *map(str, range(30))]))})
    size = len(rows.members["train"])
    first, second = questions(rows, "train", 2 * size)[:size], questions(rows, "train", 2 * size)[size:]
    assert sorted(first) == sorted(second)
    assert first != second
    assert rows.num_distinct("train") == len(set(first)) < size


def test_levels_of_a_column_order_the_epoch(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}", "answer": "1", "level": n % 5}) + "\n" for n in range(200)))
    found = table(path, curriculum={"column": "level"})
    settings = TaskSettings.model_validate({"provider": "rows", "curriculum": {"column": "level"}})
    rows = splits({"train": found}, curriculum=settings.curriculum)
    levels = [rows.problem("train", index).metadata["level"] for index in range(len(rows.members["train"]))]
    assert levels == sorted(levels)
    for wrong in ('"hard"', "true", "null", "1e999"):
        path.write_text(f'{{"question": "a", "answer": "1", "level": {wrong}}}\n')
        with pytest.raises(TaskError, match=r"line 1: 'level' is .*, expected a number; see task\.curriculum\.column"):
            table(path, curriculum={"column": "level"})
    path.write_text('{"question": "a", "answer": "1"}\n')
    with pytest.raises(TaskError, match=r"line 1 has no column 'level'.* set task\.curriculum\.column"):
        table(path, curriculum={"column": "level"})


@pytest.mark.soak
def test_ten_million_rows_take_little_memory_and_no_time_once_indexed(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "huge.jsonl"
    with path.open("w") as file:
        for number in range(10_000_000):
            file.write(f'{{"question": "{number}?", "answer": "{number}"}}\n')
    settings = {"num_problems": 10_000_000}
    table(path, **settings)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    found = table(path, **settings)
    assert time.monotonic() - started < 1
    rows = splits({"train": found}, holdout_percent=1)
    assert rows.problem("train", 5_000_000).question.endswith("?")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1.5 * 2**30
