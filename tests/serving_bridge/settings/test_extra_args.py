"""Further arguments of a server: how their names are read, and which are refused."""

from __future__ import annotations

import pytest

from serving_bridge.settings import option_names
from serving_bridge.settings.extra_args import VLLM_MODULE, check_extra_args


def test_names_are_read_as_argparse_reads_them() -> None:
    given = ["--enable_dbo=3", "--kernel-config.a.b=1", "-O3", "-O", "-O=2", "-x", "-", "-5", "-.5", "value"]
    assert option_names(given) == ["enable-dbo", "kernel-config", *["optimization-level"] * 3, "-x", "-"]


@pytest.mark.parametrize("arguments", [[], ["--seed", "3"], ["--no-enable-dbo"], ["-O3"]])
def test_vllm_is_given_options_of_its_speed(arguments: list[str]) -> None:
    check_extra_args(arguments, VLLM_MODULE)


@pytest.mark.parametrize(
    "arguments", [["3", "--seed"], ["--model", "x"], ["--see", "3"], ["-x"], ["--seed=3", "--api-key=x"]]
)
def test_vllm_is_given_nothing_else(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=r"serving\.extra_args (begins with|has) "):
        check_extra_args(arguments, VLLM_MODULE)


def test_another_server_is_given_all_but_what_weir_sets() -> None:
    check_extra_args(["--own", "3", "--config-of-mine"], "own.server")
    for argument in ("--config", "--confi", "--model=x", "-x"):
        with pytest.raises(ValueError, match="or may be read as, one that Weir sets"):
            check_extra_args([argument], "own.server")
