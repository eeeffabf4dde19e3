"""Makes a folder with a run of your own: configuration, reward and data, which run as they are.

    python -m tools.new DIR

Then: cd DIR && weir train --config config.toml
"""

from __future__ import annotations

import json
import random
import shlex
from importlib import resources
from pathlib import Path

from learner_jax.runtime import WeirError, printable
from tools.assembly import clear_errors
from tools.command_line import command_parser

_TEMPLATES = ("README.md", "config.toml", "my_reward.py")
_NUM_PROBLEMS = 200
_LARGEST = 14
_SEED = 0


class NewFolderError(WeirError, ValueError):
    """The folder can't be made, or holds something already."""

    can_heal = False


def problems(*, seed: int = _SEED) -> list[dict[str, str]]:
    """Rows of different additions, each with `question` and `answer`; the same for the same seed."""
    numbers = range(_LARGEST + 1)
    pairs = random.Random(seed).sample([(one, other) for one in numbers for other in numbers], _NUM_PROBLEMS)
    return [{"question": f"Calculate {one} + {other}.", "answer": str(one + other)} for one, other in pairs]


def make(folder: Path) -> list[str]:
    """Writes the files; returns their names.

    Raises:
      NewFolderError: the folder is there and not empty.
      OSError: it can't be written.
    """
    templates = resources.files("tools") / "templates" / "new"
    files = {name: (templates / name).read_text(encoding="utf-8") for name in _TEMPLATES}
    files["problems.jsonl"] = "".join(f"{json.dumps(row)}\n" for row in problems())
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise NewFolderError(f"{folder} is not empty; give a folder that does not exist yet")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return sorted(files)


def main() -> None:
    parser = command_parser("new", __doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to make")
    folder = parser.parse_args().folder
    with clear_errors():
        names = make(folder)
    print(f"wrote {', '.join(names)}; to run them:")
    print(f"  cd {printable(shlex.quote(str(folder)))} && weir train --config config.toml")


if __name__ == "__main__":
    main()
