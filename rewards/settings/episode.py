"""Settings of episodes of several turns: tools, documents to search, what abstaining pays, who plays the user."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

#: in place of a URL: the policy's own fleet plays the user
FLEET = "fleet"


class EpisodeSettings(BaseModel):
    """The table [task.episode]; read by the environments `tools` and `user_simulator`, and by classes with tools."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    agent: str = Field("", description="agent: package.module:name of a function (base_url, row) that plays an episode")
    agent_processes: int = Field(8, ge=1, le=256, description="agent: episodes that are played at the same time")
    tools: tuple[str, ...] = Field(
        (), description="tools: calculator, python, search, or package.module:name of a function of your own"
    )
    call_format: Literal["auto", "hermes", "qwen3_coder", "llama", "mistral"] = Field(
        "auto", description="how the model writes calls; auto goes by the marks in its answer"
    )
    max_calls: int = Field(8, ge=1, le=64, description="calls of one answer that are run; the others are errors")
    tool_timeout_s: float = Field(
        10.0, gt=0, le=3600, description="seconds for one call; then the policy sees an error"
    )
    result_characters: int = Field(4000, ge=1, le=100_000, description="longest result of a call that is shown")
    wall_s: float = Field(600.0, gt=0, le=86_400, description="seconds for one episode; longer ones are no samples")
    call_cost: float = Field(0.0, ge=0, le=1e3, description="taken off a turn's reward for every call that failed")
    corpora: dict[str, str] = Field(
        default_factory=dict,
        description="search: documents by the name of their corpus: a JSONL file of {id, text, title}, or a folder",
    )
    corpus_column: str = Field("", description="search: column that names the corpora of a row; empty: all of them")
    embeddings: str = Field("", description="search: folder of static embeddings (model2vec); empty: words alone")
    top_k: int = Field(5, ge=1, le=100, description="search: most results of a call")
    citation_weight: float = Field(
        0.0, ge=0, le=1, description="share of a right answer's reward that its citations decide"
    )
    documents_column: str = Field(
        "", description="column of the ids that a right answer cites; empty: any that was found"
    )
    answerable_column: str = Field(
        "", description="column that says whether the documents hold an answer; empty: they always do"
    )
    abstain_phrases: tuple[str, ...] = Field(
        ("I don't know", "I do not know"), description="an answer of nothing else says that one does not know"
    )
    abstain_reward: float = Field(1.0, ge=0, le=1e3, description="of abstaining where there is no answer")
    abstain_anyway: float = Field(0.0, ge=-1e3, le=1e3, description="reward of abstaining where there is an answer")
    invented_reward: float = Field(0.0, ge=-1e3, le=0, description="reward of an answer where there is none")
    user_url: str = Field(
        "", description=f"user_simulator: OpenAI-compatible address up to /v1, or {FLEET} for the policy's own replicas"
    )
    user_model: str = Field("", description="user_simulator: name of the model at user_url")
    user_key_env: str = Field("", description="user_simulator: environment variable that holds the key of user_url")
    user_prompt: str = Field(
        "You play a user who talks to an assistant. The user wants this: {question}. "
        "Write the user's next message and nothing else. Write [DONE] when the assistant has done it.",
        description="user_simulator: what the model is told; {question} is replaced",
    )
    user_tokens: int = Field(128, ge=1, le=8192, description="user_simulator: longest message of the user")
    user_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="user_simulator: seconds for one message, tries included"
    )
    user_temperature: float = Field(0.7, ge=0, le=10, description="user_simulator: temperature at user_url")

    @field_validator(
        *("tool_timeout_s", "wall_s", "call_cost", "citation_weight", "abstain_reward", "abstain_anyway"),
        *("invented_reward", "user_timeout_s", "user_temperature"),
        mode="before",
    )
    @classmethod
    def _whole_numbers_too(cls, value: Any) -> Any:
        return float(value) if type(value) is int and abs(value) < 2**31 else value

    @field_validator("tools", "abstain_phrases", mode="before")
    @classmethod
    def _arrays_too(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _search_has_documents(self) -> EpisodeSettings:
        if "search" in self.tools and not self.corpora:
            raise ValueError('tools has search, but there are no documents: set corpora, e.g. {"docs" = "docs.jsonl"}')
        if len(set(self.tools)) < len(self.tools):
            raise ValueError(f"tools names {max(self.tools, key=self.tools.count)!r} twice")
        return self
