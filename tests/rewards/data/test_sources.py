"""Sources of rows: every kind gives the same rows, in order and by place; what can't be read is named by row."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from rewards.contracts import TaskError
from rewards.data import Source, open_file, open_source
from tests.support.user_folder import working_in

ROWS = [
    {"id": str(number), "question": f'Say "{number}", or\nü{number} 😀.', "answer": str(number)}
    for number in range(300)
]


def write_json_lines(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(ROWS)))
    return path


def write_crlf_and_blanks(folder: Path) -> Path:
    path = folder / "odd.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + b"\r\n \r\n".join(json.dumps(row).encode() for row in ROWS) + b"\r\n\r\n")
    return path


def write_csv(folder: Path) -> Path:
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["id", "question", "answer"])
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def write_tsv(folder: Path) -> Path:
    path = folder / "rows.tsv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "question", "answer"], delimiter="\t")
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def write_parquet(folder: Path) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=70)
    return folder / "rows.parquet"


def write_dataset(folder: Path) -> Path:
    """A folder as `datasets.Dataset.save_to_disk` writes it, in two shards."""
    path = folder / "saved"
    path.mkdir()
    names = [f"data-0000{number}-of-00002.arrow" for number in range(2)]
    for name, rows in zip(names, (ROWS[:100], ROWS[100:]), strict=True):
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.OSFile(str(path / name), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (path / "dataset_info.json").write_text("{}")
    return path


WRITERS: list[Callable[[Path], Path]] = [
    write_json_lines,
    write_crlf_and_blanks,
    write_csv,
    write_tsv,
    write_parquet,
    write_dataset,
]


def opened(path: Path) -> Source:
    return open_file(str(path), setting="task.data")


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_of_source_gives_the_same_rows_in_order_and_by_place(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    source = opened(write(tmp_path))
    found = list(source.scan())
    assert [row.columns for row in found] == ROWS
    assert [source.row(row.place, row.end) for row in reversed(found)] == ROWS[::-1]
    assert found[2].where.startswith(source.origin)
    again = opened(Path(source.origin))
    assert again.row(found[7].place, found[7].end) == ROWS[7], "also without a scan"
    assert again.identity == source.identity
    for each in (source, again):
        each.close()


def test_the_identity_of_a_file_changes_with_it(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path)
    before = opened(path).identity
    path.write_text(path.read_text() + "\n" + json.dumps(ROWS[0]))
    assert opened(path).identity != before


def test_a_function_is_called_once_with_the_options_and_as_far_as_needed(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(
        "def rows(start):\n    while True:\n        yield {'question': str(start)}\n        start += 1\n"
    )
    with working_in(tmp_path):
        source = open_source("endless:rows", setting="task.data", options={"start": 5}, most=3)
        assert [row.columns["question"] for row in source.scan()] == ["5", "6", "7"]
        assert source.row(1, 2) == {"question": "6"}
        assert source.identity is None


def test_columns_are_chosen_before_they_are_read(tmp_path: Path) -> None:
    table = pyarrow.table({"question": ["a"], "picture": [b"\x89PNG\r\n"]})
    parquet.write_table(table, tmp_path / "pictures.parquet")
    path = str(tmp_path / "pictures.parquet")
    (row,) = open_file(path, setting="task.data", columns=("question",)).scan()
    assert row.columns == {"question": "a"}
    with pytest.raises(TaskError, match=r"row 1: 'picture' holds 6 bytes \(0x89504E470D0A\.\.\.\), no text; .*columns"):
        list(open_file(path, setting="task.data").scan())
    with pytest.raises(TaskError, match="has no column 'pitcure', only 'question', 'picture'"):
        open_file(path, setting="task.data", columns=("pitcure",))
    with pytest.raises(TaskError, match=r"task\.columns is for parquet"):
        open_file(str(write_json_lines(tmp_path)), setting="task.data", columns=("question",))


def test_values_of_arrow_become_plain(tmp_path: Path) -> None:
    day = datetime.date(2026, 11, 30)
    rows = [{"day": day, "price": decimal.Decimal("1.50"), "tags": ["a"], "more": {"x": 1, "y": None}, "none": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "odd.parquet")
    (row,) = opened(tmp_path / "odd.parquet").scan()
    assert row.columns == {
        "day": "2026-11-30",
        "price": "1.50",
        "tags": ["a"],
        "more": {"x": 1, "y": None},
        "none": None,
    }


def test_an_image_of_a_saved_dataset_is_refused_by_row(tmp_path: Path) -> None:
    rows = [{"question": "a", "image": None}, {"question": "b", "image": {"bytes": b"\x89PNG", "path": "b.png"}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "images.parquet")
    with pytest.raises(TaskError, match=r"row 2: 'image' holds an image or a sound; .* task\.columns"):
        list(opened(tmp_path / "images.parquet").scan())


def test_a_large_parquet_file_is_mapped_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("rewards.data.arrow_files._MAX_HELD_BYTES", 1000)
    path = write_parquet(tmp_path)
    before = sorted(tmp_path.iterdir())
    for _ in range(2):
        source = opened(path)
        assert [row.columns for row in source.scan()] == ROWS
        assert source.row(123, 124) == ROWS[123]
    assert len(list((tmp_path / "cache/weir/rows").iterdir())) == 1
    assert sorted(set(tmp_path.iterdir()) - set(before)) == [tmp_path / "cache"], "nothing beside the data"


def test_without_pyarrow_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_parquet(tmp_path), write_dataset(tmp_path)]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for path in paths:
        with pytest.raises(TaskError, match=r"needs pyarrow: pip install 'weir\[parquet\]'"):
            opened(path)


LINE = b'{"question": "a"}\n'


@pytest.mark.parametrize(
    ("name", "payload", "said"),
    [
        ("a.jsonl", LINE * 2 + '{"question": "é"}'.encode("latin-1"), r"line 3 is not UTF-8: .*'é' in Latin-1"),
        ("a.jsonl", LINE.decode().encode("utf-16"), "is in UTF-16, .* iconv -f UTF-16"),
        ("a.jsonl", LINE.decode().encode("utf-16-le"), "like UTF-16 without a byte order mark, .* iconv -f UTF-16LE"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16-be"), "like UTF-16 without .* iconv -f UTF-16BE"),
        ("a.jsonl", LINE.decode().encode("utf-32"), "is in UTF-32"),
        ("a.jsonl", gzip.compress(LINE, mtime=0), "is compressed by gzip, .* gunzip -k FILE"),
        ("a.csv", b"PK\x03\x04xxxx", "is a ZIP archive"),
        ("a.jsonl", LINE + b'{"question": "a", "question": "b"}', "line 2 is not JSON: the key 'question' stands"),
        ("a.jsonl", LINE + b'{"question": NaN}', "line 2 is not JSON: NaN"),
        ("a.jsonl", LINE + b"[" * 100_000, "line 2 is not JSON"),
        ("a.json", b'[{"question": "a"}]', r"line 1 is a list, expected an object; .* jq -c"),
        ("a.jsonl", LINE + b'{"a": "' + b"x" * (5 << 20) + b'"}', "line 2 has more than the 4194304 bytes"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"line 3 has 3 fields, expected 2 \(a, b\); .*quotes"),
        ("a.csv", b'a,b\n1,2\n"1,2\n', "line 3 is not CSV"),
        ("a.csv", b"a,a\n1,2\n", "line 1 names the column 'a' twice"),
        ("a.csv", b"a,\n1,2\n", "line 1 has a column without a name"),
        ("a.csv", b"a,b\n1,\xe9\n", "line 2 is not UTF-8"),
        ("a.parquet", b"PAR1 and no more", "is no parquet file that can be read"),
        ("a.jsonl", b"PAR1 and no more", "is no parquet file that can be read"),
        ("a.arrow", b"ARROW1\0\0", "is an Arrow file, expected lines of UTF-8"),
    ],
)  # fmt: skip
def test_what_can_not_be_read_is_told_with_its_place(name: str, payload: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(TaskError, match=said):
        list(opened(tmp_path / name).scan())


def test_folders_that_are_no_dataset_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"is a folder without state\.json; expected a file, or a folder that save_to"):
        opened(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(TaskError, match=r"several splits \(train, test\); name the folder of one, such as .*/train"):
        opened(tmp_path)
    saved = write_dataset(tmp_path)
    for state, said in (
        ({"_data_files": [{"filename": "../../etc/passwd"}]}, "names no file in this folder"),
        ({"_data_files": [{"filename": "missing.arrow"}]}, "can't be read: No such file"),
        ({"_data_files": [], "_indices_files": [{"filename": "x"}]}, r"once more after flatten_indices\(\)"),
        ({"_data_files": []}, "names no files"),
        ([], "holds a list, expected an object"),
    ):
        (saved / "state.json").write_text(json.dumps(state))
        with pytest.raises(TaskError, match=said):
            opened(saved)


def test_a_place_that_is_nothing_is_told(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none.jsonl", "No such file"), (tmp_path / ("x" * 300), "can't be read")):
        with pytest.raises(TaskError, match=said):
            opened(path)
    with pytest.raises(TaskError, match="can't be read"):
        open_file("a\0.jsonl", setting="task.data")


def values_of(source: Source) -> list[Any]:
    return [row.columns for row in source.scan()]


def test_a_nul_and_half_a_pair_are_text_of_other_columns(tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"question": "a", "more": "\\u0000\\ud800"}\n')
    assert values_of(opened(tmp_path / "odd.jsonl")) == [{"question": "a", "more": "\0\ud800"}]
