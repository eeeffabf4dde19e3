"""Where peers come from: scripts that run them, and an environment of its own for each.

A peer is installed with pip below ~/.cache/weir/peers (XDG_CACHE_HOME is respected), since what it needs may
contradict what Weir needs. An environment counts only once its marker is there, which is written last and names what
was asked for.

Not covered: two commands that install the same peer at the same time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from learner_jax.runtime import cache_folder
from tools.bench import BenchmarkError
from tools.bench.timing import progress

SCRIPTS_VARIABLE = "WEIR_PEERS"
REPOSITORY = Path(__file__).resolve().parents[3]

_MARKER = "complete.txt"


@dataclass(frozen=True)
class Peer:
    """A learner step of another library: the script that runs it, and what pip installs for it."""

    script: str
    requirements: tuple[str, ...]


#: of Weir's rewards, which score a peer's answers where whole runs are compared
_REWARDS = ("reasoning-gym==0.1.25", "msgspec==0.22.0", "pydantic==2.14.3")
LEARNERS = {
    "tunix": Peer("peer_tunix_step.py", ("google-tunix==0.1.7", "jax==0.10.2", "flax==0.12.8", *_REWARDS)),
    "trl": Peer("peer_trl_step.py", ("torch==2.13.0", "trl==1.16.0", "transformers==5.23.0", *_REWARDS)),
}

#: (folder, requirements): makes a virtual environment there
Installer = Callable[[Path, Sequence[str]], None]


def peers_folder() -> Path:
    """Where peers are installed that the environment lacks."""
    return cache_folder() / "peers"


def scripts_folder(given: Path | None, names: Sequence[str]) -> Path:
    """The folder that holds the scripts of these peers: the given one, WEIR_PEERS, or ../shared/peers.

    Raises:
      BenchmarkError: a script is not there.
    """
    folder = given or Path(os.environ.get(SCRIPTS_VARIABLE) or REPOSITORY.parent / "shared" / "peers")
    missing = [LEARNERS[name].script for name in names if not (folder / LEARNERS[name].script).is_file()]
    if missing:
        raise BenchmarkError(
            f"{' and '.join(missing)} expected in {folder}, not there: the scripts that run one learner step of a peer "
            f"are not part of this repository; name their folder with --peers or {SCRIPTS_VARIABLE}, or measure "
            f"Weir alone with --sides weir"
        )
    return folder


def environment(name: str, given: Path | None, install: Installer | None = None) -> Path:
    """The Python of a peer's environment, which is installed first where it is missing or unfinished.

    Args:
      given: folder with one environment per peer, made by others and taken as it is; the cache folder without it.
    Raises:
      BenchmarkError: there is none in the given folder, or it could not be installed.
    """
    folder = (given or peers_folder()) / name
    python = folder / "bin" / "python"
    if given is not None:
        if not python.is_file():
            raise BenchmarkError(f"{python} expected, not there: --environments names a folder with {name}/ in it")
        return python
    requirements = LEARNERS[name].requirements
    wanted = "".join(f"{requirement}\n" for requirement in requirements)
    marker = folder / _MARKER
    if marker.is_file() and marker.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    (install or install_with_pip)(folder, requirements)
    marker.write_text(wanted)
    return python


def install_with_pip(folder: Path, requirements: Sequence[str]) -> None:
    """Makes a virtual environment with these packages; shows what pip said only if it failed.

    Raises:
      BenchmarkError: pip failed.
    """
    print(f"installing {' '.join(requirements)} into {folder}", file=sys.stderr)
    with progress() as bar:
        bar.add_task("minutes, and up to several GB", total=None)
        venv.create(folder, with_pip=True)
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, *requirements],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode:
        print(done.stdout, file=sys.stderr, end="")
        raise BenchmarkError(f"pip could not install {folder.name} and ended with status {done.returncode}; see above")
