"""What a guard without a model is: a name, a version, and an opinion of a text at a stage."""

from __future__ import annotations

from typing import Protocol

from serving_bridge.safety.decisions import Opinion, Stage


class LocalGuard(Protocol):
    """A guard that needs no other process. Its time is linear in the text, and it raises nothing."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def judge(self, text: str, stage: Stage, *, is_document: bool = False) -> Opinion:
        """Says what it thinks of a text.

        Args:
          text: what a user or a model wrote.
          stage: where it is on its way.
          is_document: whether it came from a tool or a file: instructions in it are nobody's wish.
        """
        ...
