"""The study of retrieval: what its policy can say, a run on the real environment, its page, and (soak) its claim."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.study import retrieval_results
from tools.study.records import StudyError, finished
from tools.study.retrieval import PAYS, RetrievalCell, RetrievalSettings, run
from tools.study.retrieval_policy import acts, call
from tools.study.retrieval_world import rivers, write_world

QUESTION = "How many km long is the Alna?"
RESULT = (
    "[d3] Alna: The Alna flows through Arn. It is 512 km long. There are 20 bridges.\n\n[d4] Bor: It is 99 km long."
)


def test_the_policy_searches_for_any_word_and_answers_with_what_it_was_shown() -> None:
    before = {act.text for act in acts(QUESTION, ())}
    assert before == {*map(call, ("many", "long", "Alna")), "500", "I don't know."}
    after = {act.text for act in acts(QUESTION, (RESULT,))} - before
    assert after == {"512", "512 [d3]", "20", "20 [d3]", "99", "99 [d4]"}


def test_the_right_answer_can_be_told_from_every_other_by_what_is_seen() -> None:
    found = {act.text: act.features.tolist() for act in acts(QUESTION, (RESULT,))}
    right = found.pop("512 [d3]")
    assert right not in found.values()
    lacking = {act.text: act.features.tolist() for act in acts(QUESTION, (RESULT.replace("512 km long", "deep"),))}
    assert lacking["I don't know."] != found["I don't know."]


def test_no_train_question_names_a_held_out_river(tmp_path: Path) -> None:
    write_world(tmp_path, 3)
    train, held_out, documents = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "heldout", "documents")
    )
    names = {river.name for river in rivers(3)}
    asked = [{row["question"].split()[-1].strip("?") for row in rows} for rows in (train, held_out)]
    assert asked[0] | asked[1] == names
    assert not asked[0] & asked[1]
    texts = {document["id"]: document["text"] for document in documents}
    for row in [*train, *held_out]:
        assert row["known"] == bool(row["sources"])
        assert not row["known"] or f" {row['answer']} " in texts[row["sources"][0]]


def test_a_run_plays_the_real_environment_and_repeats_itself(tmp_path: Path) -> None:
    settings = RetrievalSettings(groups=2, group_size=4, steps=4, evaluate_every=2)
    cell = RetrievalCell("paid", 0)
    curve = run(cell, settings, tmp_path)
    assert [at["dialogs"] for at in curve] == [0, 16, 32]
    assert 0 < curve[0]["searched"] < 1
    assert run(cell, settings, tmp_path) == curve


def test_the_page_has_a_row_for_every_way_of_paying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = {"dialogs": 64, "searched": 1.0, "right": 0.95, "cited": 0.5, "abstained": 0.9, "abstained wrongly": 0.0}
    asked: list[RetrievalCell] = []

    def fake(cell: RetrievalCell, settings: RetrievalSettings, folder: Path) -> list[dict[str, float]]:
        asked.append(cell)
        last = {**end, "reward": 0.8, "right": 0.95 - 0.2 * cell.seed}
        return [{**last, "dialogs": 0}, last]

    monkeypatch.setattr("tools.study.retrieval.run", fake)
    settings = RetrievalSettings(steps=1)
    for _ in range(2):
        records = retrieval_results.run_study(tmp_path / "out", 2, settings)
    assert len(asked) == len(finished(tmp_path / "out", settings, RetrievalCell)) == 2 * len(PAYS)
    page = retrieval_results.write_retrieval_report(records, settings, tmp_path)
    assert "| paid | 100 (100 to 100) | 85 (75 to 95) | 50 (50 to 50) |" in page.read_text()
    assert "0.80 | 1 of 2 |" in page.read_text()
    assert (tmp_path / "retrieval.svg").read_text().startswith("<?xml")
    page.write_text("no markers")
    with pytest.raises(StudyError, match="put them back"):
        retrieval_results.write_retrieval_report(records, settings, tmp_path)


@pytest.mark.soak
def test_a_policy_searches_and_abstains_where_abstaining_is_paid(tmp_path: Path) -> None:
    """Two seeds of each way of paying, 10,240 dialogs each."""
    ends = {
        pays: [run(RetrievalCell(pays, seed), RetrievalSettings(), tmp_path)[-1] for seed in (0, 1)] for pays in PAYS
    }
    assert all(min(end["right"], end["abstained"]) >= retrieval_results.LEARNT for end in ends["paid"]), ends
    assert all(end["right"] >= retrieval_results.LEARNT > 0.5 > end["abstained"] for end in ends["not paid"]), ends
