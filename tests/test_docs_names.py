"""What README and docs name is there: files, folders, modules, links, and the names within modules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
TOPS = "learner_jax|serving_bridge|rewards|configs|tools|tests|docs"
PATH = re.compile(rf"(?<![\w./-])(?:{TOPS})/[\w./*-]*\w")
MODULE = re.compile(rf"(?<![\w./-])(?:{TOPS})(?:\.\w+)+(?!\w*/)")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def is_module(name: str) -> bool:
    """Whether "package.module.name" stands for a module, or for a word of one."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        path = REPOSITORY.joinpath(*parts[:size])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.exists():
            return size == len(parts) or re.search(rf"\b{parts[size]}\b", file.read_text()) is not None
    return False


def missing(text: str, folder: Path) -> list[str]:
    """The names in a page of this folder that stand for nothing."""
    names = [name for name in PATH.findall(text) if not (any(REPOSITORY.glob(name)) or (folder / name).exists())]
    names += [
        name for name in MODULE.findall(text) if not name.endswith((".md", ".toml", ".sh")) and not is_module(name)
    ]
    return names + [link for link in LINK.findall(text) if not (folder / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_what_a_page_names_is_there(page: Path) -> None:
    assert not missing(page.read_text(), page.parent)


def test_what_is_gone_is_noticed() -> None:
    text = "`tools/gone.py`, `tools/*.gone`, `learner_jax.gone`, `learner_jax.losses.gone`, [gone](gone.md#here)"
    assert missing(text, REPOSITORY) == [
        *("tools/gone.py", "tools/*.gone", "learner_jax.gone", "learner_jax.losses.gone"),
        "gone.md",
    ]
    assert not missing(
        "`tools/train.py`, `configs/*.toml`, `learner_jax.losses.token_local`, [it](README.md)", REPOSITORY
    )
