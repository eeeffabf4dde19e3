"""None of the structured personal data of the shared set is in any file that a recorder writes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from serving_bridge.feedback import Feedback
from serving_bridge.sessions import ChatMessage
from serving_bridge.text import Tokenizer
from tests.support.recording_world import Recordings, request, told
from tests.support.session_world import tokenizer
from tools.screening.measuring import STRUCTURED

__all__ = ["tokenizer"]


def test_no_file_holds_personal_data(tmp_path: Path, tokenizer: Tokenizer, shared_data: Path) -> None:
    """As question, answer and edit; the journal is looked at before the database has its lines, and after."""
    rows = json.loads((shared_data / "pii_presidio" / "generated_small.json").read_text())
    marked = [r for r in rows if any(s["entity_type"] in STRUCTURED for s in r["spans"])]
    values = {s["entity_value"] for r in marked for s in r["spans"] if s["entity_type"] in STRUCTURED}
    assert len(values) > 20
    recordings = Recordings(tokenizer, tmp_path, str(tmp_path / "state.db"))

    def found() -> list[tuple[str, str]]:
        files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        return [(str(path), value) for path, content in files.items() for value in values if value.encode() in content]

    async def record() -> None:
        recorder = recordings.recorder()
        for number, row in enumerate(marked):
            recording = await recorder.begin(request(ChatMessage("user", row["full_text"])))
            assert recording is not None
            await told(recording, tokenizer, f"You said: {row['full_text']}", response_id=f"r{number}")
        assert recorder._journal.num_bytes > 1000
        assert found() == []
        assert await recorder.flush()
        recorder._journal.close(remove=False)

    asyncio.run(record())
    edits = [Feedback(f"e{n}", f"r{n}/0", "edit", text=row["full_text"]) for n, row in enumerate(marked)]
    assert set(recordings.feedback().add("acme", edits)) == {"joined"}
    assert found() == []
    assert recordings.database is not None
    recordings.database.close()
    assert found() == []
