"""Short dialogs of additions whose answers are checked turn by turn: the study's two tasks.

One turn is the demo's task. With two, the second question adds to the *policy's own* first answer (modulo 100; 0 if it
is no number), and the reward comes only when the dialog ends: the share of turns answered rightly. So an early
mistake costs nothing at once, and which turn earned the reward is for the estimator to find out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learner_jax.batches import Example
from rewards.contracts import Split, Task
from serving_bridge.evaluation import PromptEncoder


@dataclass(frozen=True)
class Question:
    tokens: tuple[int, ...]
    answer: str


@dataclass(frozen=True)
class Dialogs:
    """Questions as token ids, and what their right answers are.

    Attributes:
      num_turns: questions per dialog.
    """

    task: Task
    encoder: PromptEncoder
    num_turns: int

    def first(self, split: Split, index: int) -> Question:
        """The first question of dialog `index`, as the task asks it."""
        problem = self.task.problem(split, index)
        prompt = self.encoder.encode(problem)
        if prompt is None:
            raise ValueError(f"question {problem.question!r} is longer than rollout.max_prompt_tokens")
        return Question(tuple(prompt), problem.answer)

    def following(self, answer: str, index: int, turn: int) -> Question:
        """The question of a later turn, made of the answer that the policy gave."""
        carried = int(answer) % 100 if answer.isdecimal() else 0
        addend = int(np.random.default_rng([index, turn]).integers(10, 100))
        tokens = self.encoder.tokenizer.encode_prompt(f"Calculate {carried} + {addend}.", chat=False)
        return Question(tuple(tokens), str(carried + addend))

    def text(self, tokens: Sequence[int]) -> str:
        """What an answer says, without the end token."""
        return self.encoder.tokenizer.decode([t for t in tokens if t not in self.encoder.tokenizer.eos_ids]).strip()

    def example(self, split: Split, index: int) -> Example:
        """A whole dialog with right answers, and the mask of their tokens."""
        tokens: list[int] = []
        mask: list[bool] = []
        question = self.first(split, index)
        for turn in range(self.num_turns):
            if turn:
                question = self.following(question.answer, index, turn)
            answer = [*self.encoder.tokenizer.encode(question.answer), self.encoder.tokenizer.eos_ids[0]]
            tokens += [*question.tokens, *answer]
            mask += [False] * len(question.tokens) + [True] * len(answer)
        return tokens, mask
