"""Settings that can't learn, or can't be meant, are refused by name when the configuration is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from configs.load import ConfigError, load_config, parse_config, save_config
from configs.overrides import model_of
from configs.paths import PATH_SETTINGS
from configs.schema import Config
from tests.conftest import REPOSITORY

DEMO = REPOSITORY / "configs" / "demo.toml"


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(DEMO, overrides)
    return str(caught.value)


def demo_tree() -> dict[str, Any]:
    return load_config(DEMO).model_dump(mode="json", exclude_none=True)


# What can't learn.


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "reinforce_pp_baseline"])
def test_one_answer_per_group_has_nothing_to_be_compared_with(estimator: str) -> None:
    message = refused("rollout.group_size=1", f"learner.loss.advantage.estimator={estimator}")
    assert re.search(rf"advantage\.estimator {estimator} .*there are none: set rollout\.group_size to 2", message)


def test_one_answer_per_group_is_enough_for_values_and_for_batches() -> None:
    alone = "rollout.group_size=1"
    values = ["learner.loss.advantage.estimator=vtrace", "learner.loss.value.model=shared"]
    assert load_config(DEMO, [alone, *values]).rollout.group_size == 1
    batch = ["learner.loss.advantage.estimator=reinforce_pp"]
    assert load_config(DEMO, [alone, *batch]).rollout.group_size == 1
    assert "reinforce_pp compares the answers of a batch" in refused(alone, *batch, "learner.groups_per_step=1")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("task.prompt_template=Think!",), r"task\.prompt_template: expected \{question\} in it"),
        (("task.prompt_template={ question }",), r"task\.prompt_template: expected \{question\} in it"),
        (("task.prompt_template=",), r"task\.prompt_template: expected \{question\} in it"),
        (("rollout.temperature=0.005",), r"rollout\.temperature: .*to 0\.01, got 0\.005 \(vLLM samples at 0\.01"),
        (("rollout.temperature=2.5",), r"rollout\.temperature: .*less than or equal to 2"),
        (("evaluation.temperature=0.001",), r"evaluation: temperature is 0\.001, but vLLM would sample at 0\.01"),
        (("learner.optimizer.learning_rate=1e-30",), r"learning_rate: .*got 1e-30 \(.*below 1e-10, updates get lost"),
        (("warm_start.learning_rate=1e-30",), r"warm_start\.learning_rate"),
        (("learner.optimizer.beta2=0.99999999",), r"optimizer\.beta2: "),
        (("learner.optimizer.eps=1e-50",), r"optimizer\.eps: "),
        (("learner.optimizer.max_grad_norm=1e-30",), r"optimizer\.max_grad_norm: "),
        (
            ("learner.optimizer.weight_decay=1e5", "learner.optimizer.learning_rate=1e-3"),
            r"learning_rate x weight_decay is 100, expected below 1",
        ),
        (
            ("learner.loss.mismatch={ truncation = 2.0, lagging = true }", "learner.mismatch_versions=1"),
            r"mismatch_versions is 1 and rollout\.max_staleness 2: set the first to at least the second",
        ),
        (
            ('learner.loss.groups={ overlong = "penalize", overlong_buffer_tokens = 5 }',),
            r"overlong_buffer_tokens is 5, but rollout\.max_tokens 4",
        ),
        (("learner.loss.groups.overlong_buffer_tokens=2",), r'is for overlong = "penalize", not "keep"'),
        (
            ("rollout.max_episode_tokens=12",),
            r"max_episode_tokens is 12, but a prompt and its first answer can take 13",
        ),
        (("learner.mesh={ data = 0 }",), r"learner\.mesh: data, fsdp and tensor are \[0, -1, 1\]"),
        (("learner.mesh={ data = -1 }",), r"at most one may be -1"),
        (("learner.mesh={ fsdp = 5 }",), r"microbatch_rows is 24 and does not divide over mesh\.data x mesh\.fsdp = 5"),
        (("serving.port=65535", "serving.replicas=2"), r"the last one would listen on 65536"),
        (("task.feedback= ", "task.turns=2", "learner.sequence_length=40"), r"feedback is empty, but turns above 1"),
        (("store.database=:memory:",), r"every process would have one of its own"),
        (("store.max_queued_bytes=1000",), r"max_queued_bytes is 1000, expected at least max_group_bytes"),
        (("store.database_timeout_s=1e-5",), r"database_timeout_s: "),
        (("store.database_timeout_s=1e7",), r"database_timeout_s: "),
        (("store.claim_lease_s=1e-3",), r"claim_lease_s: "),
        (("serving.hang_s=1e12",), r"serving\.hang_s: expected at most 1e\+08 seconds, got 1e\+12"),
        (("model.create.num_kv_heads=3",), r"num_heads is 4, expected a multiple of num_kv_heads \(3\)"),
        (("model.create.head_dim=33",), r"head_dim is 33, expected an even number"),
        (("learner.hosts={ count = 2, coordinator = 'here' }", "learner.microbatch_rows=24"), r"hosts\.coordinator"),
        (("serving.server_module=-c",), r"serving\.server_module"),
        (("serving.host=",), r"serving\.host"),
        (("run.seed=4294967296",), r"run\.seed: .*\(.*JAX's generators take 32 bits of it\)"),
        (("run.seed=-1",), r"run\.seed"),
        (("run.name=..",), r"run\.name: "),
        (("run.name=.",), r"run\.name: "),
        (("run.name=-rf",), r"run\.name: "),
        (("run.name=",), r"run\.name: "),
        (("run.name=" + "x" * 300,), r"run\.name: "),
        (("run.name=a/b",), r"run\.name: "),
    ],
)
def test_what_cannot_work_is_refused_by_name(overrides: tuple[str, ...], message: str) -> None:
    assert re.search(message, refused(*overrides)), refused(*overrides)


def test_bounds_that_stand_for_none_may_be_infinite_and_are_saved_so(tmp_path: Path) -> None:
    config = load_config(
        DEMO,
        [
            "learner.loss.policy={ clip_low = 1.0, clip_high = inf, importance_cap = inf }",
            "learner.loss.advantage={ clip_rho = inf, clip_c = inf }",
            "learner.optimizer.max_grad_norm=inf",
        ],
    )
    save_config(config, tmp_path / "saved.toml")
    again = load_config(tmp_path / "saved.toml")
    assert again == config
    assert again.learner.loss.policy.clip_high == math.inf
    assert again.learner.optimizer.max_grad_norm == math.inf


# Every setting there is, with values of a wrong kind.


def settings_of(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, field in model.model_fields.items():
        inner = model_of(field.annotation)
        if inner is not None:
            yield from settings_of(inner, (*prefix, name))
        else:
            yield (*prefix, name), field.annotation


SETTINGS = dict(settings_of(Config))
#: settings of a bound, where infinity stands for none
_INFINITE = {"clip_high", "importance_cap", "clip_rho", "clip_c", "max_grad_norm"}


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    inner = tree
    for part in path[:-1]:
        below = inner.setdefault(part, {})
        if isinstance(below, list):  # an array of tables, of which one is there
            below[:] = [{"use": "math"}]
        inner = below[0] if isinstance(below, list) else below
    inner[path[-1]] = value
    return tree


def takes(annotation: Any, kind: type) -> bool:
    return annotation is kind or kind in getattr(annotation, "__args__", ())


def test_the_schema_was_walked() -> None:
    assert len(SETTINGS) > 140
    assert SETTINGS["learner", "loss", "kl", "budget"] == float | None


@pytest.mark.parametrize("path", SETTINGS, ids=".".join)
def test_no_setting_takes_another_type_or_a_number_that_is_none(path: tuple[str, ...]) -> None:
    annotation = SETTINGS[path]
    wrong: list[Any] = [math.nan, -math.inf]
    if path[-1] not in _INFINITE:
        wrong.append(math.inf)
    if not takes(annotation, str):
        wrong += ["", "true", "8", "1.0"]
    if not takes(annotation, bool):
        wrong.append(True)
    if takes(annotation, bool) or takes(annotation, str):
        wrong += [0, 1, 1.5]
    if takes(annotation, int):
        wrong += [1.0, 10**400]
    if takes(annotation, str):
        wrong += ["a\x00b", "a\x1b[31mb", "a\ud800b", "a\x85b"]
    if path == ("task", "options"):
        wrong = [*wrong, {"a\n": 1}, {"a": "\ud800"}, {"a": math.nan}, {"a": ["\x07"]}]
    for value in wrong:
        with pytest.raises(ConfigError) as caught:
            parse_config(put(demo_tree(), path, value), origin="here")
        assert path[-1] in str(caught.value), value
        assert str(caught.value).isprintable(), value


def test_an_unknown_key_of_an_array_of_tables_is_told() -> None:
    with pytest.raises(ConfigError, match="task.rewards.0.wheight: unknown key; .*nown here: use, weight, name"):
        parse_config(put(demo_tree(), ("task", "rewards", "wheight"), 1.0), origin="x")


def test_a_whole_number_is_a_number() -> None:
    optimizer = parse_config(
        put(demo_tree(), ("learner", "optimizer", "weight_decay"), 1), origin="x"
    ).learner.optimizer
    assert type(optimizer.weight_decay) is float
    task = parse_config(put(demo_tree(), ("task", "turn_discount"), 1), origin="x").task
    assert type(task.turn_discount) is float


# Text on the command line.


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run.name=2024", "2024"),
        ("run.name=1e5", "1e5"),
        ("run.name=true", "true"),
        ("run.name=2024-01-01", "2024-01-01"),
        ('run.name="2024"', "2024"),
        ("run.name='2024'", "2024"),
        ("run.directory=[1, 2]", "[1, 2]"),
        ("run.directory={a = 1}", "{a = 1}"),
        ("run.directory=a # b", "a # b"),
        ('run.directory=a "b" c', 'a "b" c'),
        ("run.directory='a' and 'b'", "'a' and 'b'"),
        (r"task.prompt_template={question}\nThink.", "{question}\nThink."),
        ("task.prompt_template={question}\nThink.", "{question}\nThink."),
        (r'task.prompt_template="{question}\nThink.\t"', "{question}\nThink.\t"),
        (r"task.prompt_template='{question}\nThink.'", r"{question}\nThink."),
        (r"task.prompt_template={question} in \\boxed{}", r"{question} in \boxed{}"),
        ("learner.remat=full", "full"),
        ("learner.loss.kl.reference=1.5", "1.5"),
    ],
)
def test_text_needs_no_quotes(override: str, value: str) -> None:
    config: Any = load_config(DEMO, [override])
    for part in override.partition("=")[0].split("."):
        config = getattr(config, part)
    is_path = override.partition("=")[0] in PATH_SETTINGS
    assert config == (str(Path.cwd() / value) if is_path else value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            r"task.prompt_template={question} \boxed{}",
            r"override of task\.prompt_template: \\b is not understood; write",
        ),
        (r"task.prompt_template={question} \times", r"\\t is not understood"),
        ("task.prompt_template={question} \\", r"\\ is not understood"),
        (r"run.directory=a\nb", r"run\.directory: 'a\\nb' holds the control character U\+000A"),
        ("run.directory=a\udcffb", r"run\.directory: 'a\\udcffb' is not valid UTF-8"),
        ("learner.steps=5\nx=1", r"override of learner\.steps holds several settings"),
        ("learner.steps=" + "9" * 5000, r"learner\.steps: Input should be a valid integer, got '999.*\.\.\."),
        ("learner.steps=" + "[" * 5000, r"learner\.steps( is nested|: Input)"),
        ("task.options.day=2024-01-01", r"task\.options\.day: dates and times are no settings"),
        ("learner.row_tokens=13", r"learner\.row_tokens: Input should be an array, got 13"),
        ("learner.optimizer=5", r"learner\.optimizer: Input should be a table, got 5"),
        ("task.chat=yes", r"task\.chat: Input should be a valid boolean, got 'yes'"),
        ("a\x1b.b=1", r"a\\x1b"),
        ("=1", r"expected section\.key=value"),
        ("run.=1", r"expected section\.key=value"),
    ],
)
def test_what_is_not_understood_on_the_command_line_is_refused(override: str, message: str) -> None:
    text = refused(override)
    assert re.search(message, text), text
    assert text.isprintable()


def test_later_overrides_win_and_tables_are_replaced() -> None:
    config = load_config(DEMO, ["learner.steps=50", "learner.steps=60", "learner.loss={ entropy_coefficient = 0.1 }"])
    assert config.learner.steps == 60
    assert config.learner.loss.kl.coefficient == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[run]\nname = 2024\n", "run.name: Input should be a valid string, got 2024; put text in quotes"),
        (b"\xff\xfe", "is not valid TOML: it is not UTF-8 at byte 0"),
        (b"x = " + b"[" * 5000, "is not valid TOML: it is nested too deeply"),
        (b"x = " + b"9" * 5000, "is not valid TOML"),
        (b"", "run: Field required"),
    ],
)
def test_files_that_are_not_settings_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_and_a_byte_order_mark(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load_config(tmp_path)
    marked = tmp_path / "marked.toml"
    marked.write_bytes(b"\xef\xbb\xbf" + DEMO.read_bytes())
    assert load_config(marked) == load_config(DEMO)
