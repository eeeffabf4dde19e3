"""Any dialog, edited, branched and cut: what is recorded is what the engine saw, and no message is kept twice."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from serving_bridge.recordings import Made, Recorded, Recorder, Sampled, Span, ids_of, path_of, text_of
from serving_bridge.sessions import ChatMessage, ToolCall
from serving_bridge.text import Tokenizer
from tests.support.properties import examples
from tests.support.recording_world import Recordings, request
from tests.support.session_world import ADD, tokenizer

__all__ = ["tokenizer"]

TEXTS = st.sampled_from(["yes", " yes ", "no", "twelve. É", "<|im_end|>", '{"a": 1}'])
ENDS = st.sampled_from(["stop", "stop", "stop", "length", "cut", "call"])


class Dialogs(RuleBasedStateMachine):
    """Clients that hold several conversations about one first question, with gateways that come and go.

    Attributes:
      seen: answer id -> (ids that the engine was given, ids and log-probs that it sampled).
      dialogs: what clients have on their screens.
    """

    tokenizer: Tokenizer

    @initialize(tools=st.booleans())
    def begin(self, tools: bool) -> None:
        self.tools = tools
        self.folder = tempfile.TemporaryDirectory(prefix="weir-dialogs-")
        self.recordings = Recordings(self.tokenizer, Path(self.folder.name))
        self.recorder = self.started()
        self.seen: dict[str, tuple[list[int], list[int], list[float]]] = {}
        self.dialogs: list[list[ChatMessage]] = [[ChatMessage("user", "q")]]
        self.said: set[str] = set()
        self.number = 0

    def started(self) -> Recorder:
        return self.recordings.recorder(redact=False, max_answers=40)

    def ask(self, dialog: list[ChatMessage], choices: int, text: str, ended: str, *, tools: bool) -> list[ChatMessage]:
        """Asks for an answer; returns the dialog with it."""
        asked = request(*dialog, conversation="c", tools=(ADD,) if tools else ())
        return asyncio.run(self.answered(asked, dialog, choices, text, ended))

    async def answered(self, asked: Any, dialog: Any, choices: int, text: str, ended: str) -> list[ChatMessage]:
        recording = await self.recorder.begin(asked)
        assert recording is not None
        prompt = recording.prompt
        assert prompt is not None
        self.number += 1
        name, sampled = f"r{self.number}", []
        for index in range(choices):
            tokens = [i for letter in text for i in self.tokenizer.backend.encode(letter).ids] + [3 + index]
            tokens += [] if ended == "length" else [self.tokenizer.eos_ids[0]]
            logprobs = [-(token % 97) / 100 for token in tokens]
            self.seen[f"{name}/{index}"] = (prompt, tokens, logprobs)
            calls = (ToolCall("call00001", "add", '{"a": 1}'),) if ended == "call" else ()
            message = ChatMessage("assistant", text, calls)
            packed = np.asarray(logprobs, "<f4").tobytes()
            sampled.append(Sampled(index, message, tokens, packed, (Span(3, 0, len(tokens)),), ended, ended != "cut"))
        await recording.ended(Made(name, "stable", "policy", 1.0, 99), prompt, sampled)
        self.said |= {text_of(message) for message in (*dialog, message)}
        return [*dialog, message]

    @rule(
        data=st.data(), text=TEXTS, choices=st.integers(1, 2), ended=st.sampled_from(["stop", "length", "cut", "call"])
    )
    def say(self, data: st.DataObject, text: str, choices: int, ended: str) -> None:
        dialog = data.draw(st.sampled_from(self.dialogs))
        told = self.ask(dialog, choices, text, ended, tools=self.tools)
        said = ChatMessage("tool", "3", call_id="call00001") if ended == "call" else ChatMessage("user", "more")
        self.dialogs.append([*told, said])

    @rule(data=st.data(), text=TEXTS)
    def edit(self, data: st.DataObject, text: str) -> None:
        """A client changes a message that it sent or got, and forgets what came after it."""
        dialog = data.draw(st.sampled_from(self.dialogs))
        place = data.draw(st.integers(0, len(dialog) - 1))
        edited = [*dialog[:place], ChatMessage(dialog[place].role, text, call_id=dialog[place].call_id)]
        if edited[-1].role == "assistant":
            edited.append(ChatMessage("user", "and?"))
        self.dialogs.append(edited)

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        """A client leaves out messages in the middle."""
        dialog = data.draw(st.sampled_from(self.dialogs))
        self.dialogs.append([dialog[0], *dialog[-1:]] if len(dialog) > 2 else dialog)

    @rule(clean=st.booleans())
    def another_gateway(self, clean: bool) -> None:
        """A gateway ends, or is killed; another one of its host goes on."""

        async def change() -> None:
            if clean:
                await self.recorder.flush()
            self.recorder._journal.close(remove=False)
            self.recorder = self.started()
            self.recorder._adopt()
            await self.recorder.flush()

        asyncio.run(change())

    @precondition(lambda self: self.seen)
    @rule()
    def check(self) -> None:
        asyncio.run(self.flushed())
        sessions = list(self.recordings.store.each())
        self.holds(sessions)

    async def flushed(self) -> None:
        assert await self.recorder.flush()

    def holds(self, sessions: list[Recorded]) -> None:
        assert sorted(a.answer_id for kept in sessions for a in kept.answers) == sorted(self.seen)
        for kept in sessions:
            assert len(set(kept.texts.values())) == len(kept.texts)
            assert set(kept.texts.values()) <= self.said | {text for text in kept.texts.values() if text[0] == "["}
            assert len({turn.turn_id for turn in kept.turns}) == len(kept.turns)
            for answer in kept.answers:
                prompt, tokens, logprobs = self.seen[answer.answer_id]
                ids: list[int] = []
                for turn, at in path_of(kept, answer.answer_id):
                    assert turn.tokens is not None
                    assert at.tokens is not None
                    ids += [*ids_of(turn.tokens), *ids_of(at.tokens)]
                assert ids == [*prompt, *tokens]
                assert answer.logprobs is not None
                np.testing.assert_array_equal(np.frombuffer(answer.logprobs, "<f4"), np.asarray(logprobs, "<f4"))

    def teardown(self) -> None:
        if hasattr(self, "recorder"):
            asyncio.run(self.flushed())
            self.holds(list(self.recordings.store.each()))
            self.recorder._journal.close(remove=True)
            assert self.recordings.database is not None
            self.recordings.database.close()
            self.folder.cleanup()


def test_any_dialog(tokenizer: Tokenizer) -> None:
    machine = type("Machine", (Dialogs,), {"tokenizer": tokenizer})
    run_state_machine_as_test(machine, settings=examples(0.3))
