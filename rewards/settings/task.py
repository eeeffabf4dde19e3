"""Settings of a task: which provider, which problems, how its problems divide into splits."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rewards.settings.curriculum import CurriculumSettings
from rewards.settings.delayed import DELAYED, DelayedSettings
from rewards.settings.episode import EpisodeSettings
from rewards.settings.reward import RewardPart

#: How the names of files with rows end; what holds a slash is a path, too.
_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
#: What [[task.sources]] says of each source, and the task can't for all of them.
_OF_A_SOURCE = ("name", "path", "data", "validation_data", "heldout_data")


def names_file(data: str) -> bool:
    """Whether `task.data` is the path of a file or folder; otherwise it names a function."""
    return "/" in data or data.lower().endswith(_ENDINGS)


def _beside(common: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    """What a source takes from the task: not its rewards, where it has some of its own."""
    own = {"reward", "rewards", "delayed"} if source.get("reward") or source.get("rewards") else set()
    return {key: value for key, value in common.items() if key not in own}


class ProblemSettings(BaseModel):
    """Where problems come from, how they are asked, and who scores the answers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    provider: str = Field(
        min_length=1,
        description="reasoning_gym, keyword_story, jsonl_math, rows (own data and reward), or package.module:name",
    )
    name: str = Field("", description="reasoning_gym: name of the dataset")
    path: str = Field("", description="jsonl_math: file of {question, answer} lines")
    data: str = Field(
        "",
        description="rows: file of JSON lines, .csv, .tsv or .parquet, folder of a saved dataset, or "
        "package.module:name of a function that gives rows",
    )
    validation_data: str = Field(
        "", description="rows: file, folder or function with validation problems; empty: of data, by holdout_percent"
    )
    heldout_data: str = Field(
        "", description="rows: file, folder or function with held-out problems; empty: of data, by holdout_percent"
    )
    columns: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="rows of parquet and saved datasets: columns that are read; empty: all"
    )
    question_column: str = Field("question", min_length=1, description="rows: column of the question's text")
    answer_column: str = Field("answer", description='rows: column of the reference answer; "" if there is none')
    id_column: str = Field("", description="rows: column that names each row; the same name twice is refused")
    messages_column: str = Field(
        "", description="rows: column of messages with role and content, in place of a question; needs chat"
    )
    system_column: str = Field("", description="rows: column of the system message; needs chat")
    tools_column: str = Field("", description="rows: column of tool definitions as OpenAI has them; needs chat")
    system: str = Field("", description="system message of all prompts; needs chat")
    tools: str = Field("", description="JSON file with a list of tool definitions as OpenAI has them; needs chat")
    reward: str = Field(
        "",
        description="rows: a verifier such as math, package.module:name of a function (prompt, answer, row), or the "
        "address of a reward server; of any task: delayed, for rewards that come later (task.delayed)",
    )
    rewards: tuple[RewardPart, ...] = Field(
        (),
        max_length=50,
        strict=False,
        description="rows: several rewards instead of `reward`, whose weighted sum is the score",
    )
    reward_key: str = Field(
        "", pattern=r"^[A-Za-z0-9_]*$", description="environment variable that holds a reward server's key"
    )
    score_timeout_s: float = Field(5.0, gt=0, le=3600, description="seconds; an answer not scored by then has no score")
    score_processes: int = Field(2, ge=1, le=256, description="processes that score answers, one each at a time")
    score_confined: bool = Field(
        True, description="own reward or environment: answers are scored without files, network and programs"
    )
    sandbox: Literal["bubblewrap", "runsc"] = Field(
        "bubblewrap",
        description="holds code that the policy writes, for the verifier code and the tool python: bubblewrap, or "
        "gVisor's runsc, which is stronger and slower and has to be installed",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="passed to the provider; rows: arguments of the function of data"
    )
    validation_options: dict[str, Any] | None = Field(
        None, description="rows: arguments of the function of validation_data; unset: options, if data is a function"
    )
    heldout_options: dict[str, Any] | None = Field(
        None, description="rows: arguments of the function of heldout_data; unset: options, if data is a function"
    )
    prompt_template: str = Field("{question}", description="text sent to the model; {question} is replaced")
    num_problems: int = Field(1_000_000, gt=0, le=2**40, description="problems generated before the stream repeats")
    holdout_percent: int = Field(
        5, ge=1, le=45, description="percent of all problems held out for evaluation; as many again are for validation"
    )
    curriculum: CurriculumSettings | None = Field(None, description="rows: which problems are asked when")
    delayed: DelayedSettings | None = Field(None, description='reward "delayed": how long answers wait for theirs')

    @field_validator("score_timeout_s", mode="before")
    @classmethod
    def _whole_numbers_too(cls, value: Any) -> Any:
        return whole_too(value)

    @field_validator("columns", mode="before")
    @classmethod
    def _arrays_too(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("prompt_template")
    @classmethod
    def _asks(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError(
                f"expected {{question}} in it, which stands for the problem, got {value!r}: every prompt would "
                f"be the same"
            )
        return value

    @model_validator(mode="after")
    def _messages_say_it_all(self) -> ProblemSettings:
        if self.messages_column and self.prompt_template != "{question}":
            raise ValueError("messages_column names whole prompts, which no prompt_template goes around: drop one")
        return self

    @model_validator(mode="after")
    def _options_have_a_function(self) -> ProblemSettings:
        for split in ("validation", "heldout"):
            if getattr(self, f"{split}_options") is not None and not getattr(self, f"{split}_data"):
                raise ValueError(f"{split}_options are arguments of a function, and {split}_data names none")
        return self

    @model_validator(mode="after")
    def _rewards_are_named_apart(self) -> ProblemSettings:
        if self.reward and self.rewards:
            raise ValueError("reward and rewards are both set: put the one into the list of the others, or take it out")
        names = [part.part for part in self.rewards]
        if len(set(names)) < len(names):
            raise ValueError(f"rewards has two parts called {max(names, key=names.count)!r}: set their `name`")
        return self

    @model_validator(mode="after")
    def _delay_is_said(self) -> ProblemSettings:
        if (self.reward == DELAYED) != (self.delayed is not None):
            raise ValueError(
                'reward = "delayed" and the table [task.delayed] go together: set window_s there'
                if self.delayed is None
                else f'the table [task.delayed] needs reward = "delayed", got {self.reward!r}'
            )
        if self.delayed is None:
            return self
        if self.provider == "rows" and not self.delayed.heldout_reward:
            raise ValueError(
                'reward = "delayed" needs delayed.heldout_reward, which judges held-out answers at once: a verifier '
                'such as math, "package.module:name", or the address of a reward server'
            )
        if self.delayed.heldout_reward == DELAYED:
            raise ValueError("delayed.heldout_reward judges at once, and can't be delayed itself")
        if self.curriculum is not None and self.curriculum.measured:
            raise ValueError('curriculum.measured needs rewards at once, and reward is "delayed": drop one of them')
        return self

    @property
    def immediate_reward(self) -> str:
        """What judges an answer at once; "" where the provider does itself, or several rewards do."""
        return self.reward if self.delayed is None else self.delayed.heldout_reward

    def files(self) -> dict[str, str]:
        """Setting -> path of each file or folder that is named here."""
        names = ("path", "tools", "data", "validation_data", "heldout_data")
        given = {name: getattr(self, name) for name in names}
        return {name: path for name, path in given.items() if path and (name in names[:2] or names_file(path))}

    def options_of(self, split: str) -> dict[str, Any]:
        """Arguments of the function that gives the rows of a split: "train", "validation" or "heldout"."""
        own = {"validation": self.validation_options, "heldout": self.heldout_options}.get(split)
        if own is not None or split == "train":
            return self.options if own is None else own
        data = self.validation_data if split == "validation" else self.heldout_data
        return {} if names_file(data) or names_file(self.data) else self.options

    def needing_chat(self) -> list[str]:
        """Names of the settings that are given and work with a chat template alone."""
        names = ("messages_column", "system_column", "tools_column", "system", "tools")
        return [name for name in names if getattr(self, name)]


class SourceSettings(ProblemSettings):
    """One of several sources of problems. What it does not say is as the task has it."""

    label: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.-]{0,64}$",
        description="names the source in metrics and evaluations; empty: what its data are called",
    )
    weight: float | None = Field(
        None, gt=0, le=1e6, description="prompts of it, in proportion to other sources; for none: as many as it has"
    )

    @field_validator("weight", mode="before")
    @classmethod
    def _whole_weights_too(cls, value: Any) -> Any:
        return whole_too(value)


class TaskSettings(ProblemSettings):
    """A task is a stream of problems with a verifier.

    `holdout_percent` of all problems, chosen by a hash of the question's text, are held out for evaluation and
    as many again for validation, so that every process agrees on the split and no held-out text is trained on.
    """

    sources: tuple[SourceSettings, ...] = Field(
        (), description="[[task.sources]]: several sources, mixed; each has what the task has, and label and weight"
    )
    environment: str = Field(
        "feedback",
        min_length=1,
        description="feedback, tools, user_simulator, agent, or package.module:name of a class",
    )
    episode: EpisodeSettings = EpisodeSettings()
    chat: bool = Field(False, description="wrap the prompt with the tokenizer's chat template")
    turns: int = Field(
        1, ge=1, le=10_000, description="answers that may be given to a problem, each but the first after feedback"
    )
    turn_discount: float = Field(1.0, gt=0, le=1, description="factor on the reward for every turn after the first")
    feedback: str = Field(
        "That is not right. Try again.",
        description="said after a wrong answer; {reasons} stands for the verifier's, which may tell the right one",
    )

    @model_validator(mode="before")
    @classmethod
    def _sources_take_after_the_task(cls, tree: Any) -> Any:
        """Puts what a source does not say into its table, so that it stands in a saved configuration."""
        sources = tree.get("sources") if isinstance(tree, dict) else None
        if not isinstance(sources, list | tuple):
            return tree
        common = {key: value for key, value in tree.items() if key in ProblemSettings.model_fields}
        common = {key: value for key, value in common.items() if key not in _OF_A_SOURCE}
        filled = tuple(
            {**_beside(common, source), **source} if isinstance(source, dict) else source for source in sources
        )
        return {**tree, "sources": filled}

    @field_validator("turn_discount", mode="before")
    @classmethod
    def _whole_discounts_too(cls, value: Any) -> Any:
        return whole_too(value)

    @model_validator(mode="after")
    def _episodes_have_turns(self) -> TaskSettings:
        if self.environment in ("tools", "user_simulator") and (self.turns < 2 or not self.chat):
            raise ValueError(
                f'environment "{self.environment}" needs turns of 2 or more and chat = true, got turns = {self.turns} '
                f"and chat = {str(self.chat).lower()}"
            )
        if self.environment == "agent" and (not self.episode.agent or not self.chat):
            raise ValueError(
                f'environment "agent" needs episode.agent, a function (base_url, row), and chat = true, got '
                f"{self.episode.agent!r} and chat = {str(self.chat).lower()}"
            )
        if self._waits_for_rewards() and (
            self.environment not in ("feedback", "tools", "agent")
            or (self.environment == "feedback" and self.turns > 1)
        ):
            raise ValueError(
                f'reward = "delayed" needs an environment that ends without one: feedback with turns = 1, tools, or '
                f"agent; got {self.environment!r} with turns = {self.turns}"
            )
        if self.environment == "tools" and not self.episode.tools:
            raise ValueError('environment "tools" needs some: set episode.tools, e.g. ["calculator"]')
        if self.environment == "user_simulator" and not self.episode.user_url:
            raise ValueError('environment "user_simulator" needs episode.user_url: an address, or "fleet"')
        return self

    @model_validator(mode="after")
    def _says_something(self) -> TaskSettings:
        if self.turns > 1 and not self.feedback.strip():
            raise ValueError("feedback is empty, but turns above 1 come after it: say something, or set turns to 1")
        return self

    @model_validator(mode="after")
    def _sources_fit_together(self) -> TaskSettings:
        for table, where in [(self, ""), *((source, "sources: ") for source in self.sources)]:
            if not self.chat and (needing := table.needing_chat()):
                raise ValueError(f"{where}{needing[0]} needs chat = true: plain text has no messages")
        if not self.sources:
            return self
        if given := [name for name in _OF_A_SOURCE if getattr(self, name)]:
            raise ValueError(f"{given[0]} stands beside sources; give it in one of the tables [[task.sources]]")
        labels = self.labels()
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"two sources are called {twice[0]!r}; give each a label of its own")
        weights = [source.weight for source in self.sources]
        if None in weights and any(weight is not None for weight in weights):
            raise ValueError("some sources have a weight and others none; give it to all of them, or to none")
        return self

    def _waits_for_rewards(self) -> bool:
        return any(table.delayed is not None for table in (self.sources or (self,)))

    def longest_window_s(self) -> float:
        """Seconds that a group may wait for its rewards; 0 where all are known at once."""
        tables = self.sources or (self,)
        return max((table.delayed.window_s for table in tables if table.delayed is not None), default=0.0)

    def labels(self) -> list[str]:
        """A name for each source: its label, or what its file, function or dataset is called."""
        return [source.label or _called(source) for source in self.sources]

    def all_files(self) -> dict[str, str]:
        """Setting -> path of each file or folder of the task and of its sources."""
        own = {f"task.{name}": path for name, path in self.files().items()}
        for number, source in enumerate(self.sources):
            own |= {f"task.sources.{number}.{name}": path for name, path in source.files().items()}
        return own

    def of_source(self, source: SourceSettings) -> TaskSettings:
        """The settings of a task with this source alone."""
        own = source.model_dump(exclude={"label", "weight"})
        return TaskSettings(**{**self.model_dump(exclude={"sources"}), **own})


def whole_too(value: Any) -> Any:
    """A whole number as the number of seconds, or the share, that TOML means by it."""
    return float(value) if type(value) is int and abs(value) < 2**31 else value


def _called(source: SourceSettings) -> str:
    named = source.data or source.path or source.name or source.provider
    last = named.rstrip("/").rpartition("/")[2] if names_file(named) else named.rpartition(":")[2]
    stem = last.rpartition(".")[0] if last.lower().endswith(_ENDINGS) else last
    return re.sub(r"[^A-Za-z0-9_.-]", "_", stem)[:64]
