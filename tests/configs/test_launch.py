"""[launch]: roles with resources, secrets by reference only, and hosts that fit together."""

from __future__ import annotations

import re

import pytest

from configs.launch import is_reference
from configs.load import ConfigError, load_config

LEARNER, ROLLOUT, FLEET, DATABASE = (
    (f"launch.{role}.cpus=2", f"launch.{role}.memory_gib=4") for role in ("learner", "rollout", "fleet", "database")
)


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config("demo", overrides)
    return str(caught.value)


def test_roles_come_in_the_order_in_which_they_start() -> None:
    config = load_config("demo", [*ROLLOUT, *FLEET, *LEARNER, *DATABASE, 'launch.database.command=["postgres"]'])
    assert list(config.launch.roles()) == ["database", "fleet", "learner", "rollout"]
    assert load_config("demo").launch.roles() == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["launch.rollout.cpus=1"], r"launch\.rollout\.memory_gib: Field required"),
        (["launch.rollout.memory_gib=1"], r"launch\.rollout\.cpus: Field required"),
        ([*ROLLOUT, "launch.rollout.hosts=0"], r"launch\.rollout\.hosts: .*greater than or equal to 1"),
        ([*DATABASE], r"database\.command is empty: give the program"),
        ([*ROLLOUT, 'launch.rollout.command=["x"]'], r"rollout\.command is given, .*remove it"),
        ([*LEARNER, "launch.learner.hosts=2"], r"launch\.learner\.hosts is 2 and learner\.hosts\.count 1"),
        ([*ROLLOUT, "launch.rollout.beside=learner"], r"rollout\.beside is 'learner': expected another role"),
        ([*ROLLOUT, "launch.rollout.beside=rollout"], r"rollout\.beside is 'rollout': expected another role"),
        (
            [*ROLLOUT, *LEARNER, "launch.rollout.beside=learner", "launch.rollout.hosts=2"],
            r"launch\.rollout\.hosts is 2, but the learner beside which it runs has learner\.hosts\.count 1",
        ),
        (
            [*ROLLOUT, *FLEET, "launch.rollout.beside=fleet", "launch.rollout.hosts=2"],
            r"rollout\.hosts is 2, but fleet beside which it runs has 1",
        ),
        (
            [*ROLLOUT, *FLEET, "launch.rollout.beside=fleet", 'launch.rollout.options=["--partition=x"]'],
            r"rollout\.options are given, but its hosts are those of fleet",
        ),
        ([*ROLLOUT, 'launch.rollout.options=["--nodes=9"]'], r"options: --nodes is set by Weir; remove it"),
        ([*ROLLOUT, 'launch.rollout.options=["--comment=a\\nb"]'], r"launch\.rollout\.options"),
        ([*ROLLOUT, 'launch.rollout.options=["partition"]'], r"launch\.rollout\.options.0: .*pattern"),
        ([*ROLLOUT, "launch.rollout.venv=relative"], r"launch\.rollout\.venv: .*pattern"),
        (['launch.shared=["relative"]'], r"shared: 'relative' is not absolute"),
        (["launch.time_limit_s=200", "launch.stop_ahead_s=100"], r"stop_ahead_s is 100 and time_limit_s 200"),
    ],
)
def test_what_cannot_be_launched_is_refused_by_name(overrides: list[str], message: str) -> None:
    assert re.search(message, refused(*overrides))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WANDB_API_KEY", "hunter2"),
        ("PGPASSWORD", "hunter2"),
        ("PROXY", "http://me:hunter2@host"),
        ("OPENAI_API_KEY", "env:"),
        ("HF_TOKEN", "file:relative"),
    ],
)
def test_a_secret_by_value_is_refused_and_not_shown(variable: str, value: str) -> None:
    message = refused(*ROLLOUT, f"launch.rollout.variables.{variable}={value}")
    assert variable in message
    assert "env:NAME" in message
    assert "hunter2" not in message


def test_references_and_plain_values_are_taken() -> None:
    told = ["WANDB_API_KEY=env:WANDB", "HF_TOKEN=file:/home/me/.token", "NCCL_SOCKET_IFNAME=eth0"]
    config = load_config("demo", [*ROLLOUT, *(f"launch.rollout.variables.{pair}" for pair in told)])
    assert config.launch.rollout is not None
    assert config.launch.rollout.variables == dict(pair.split("=", 1) for pair in told)
    assert [is_reference(value) for value in config.launch.rollout.variables.values()] == [True, True, False]
