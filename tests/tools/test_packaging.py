"""What is declared is what is used: dependencies, pins, entry point, package data, import directions."""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from learner_jax.runtime import Door
from rewards.environments import ENVIRONMENT
from rewards.tasks import DATA, REWARD, TASK
from rewards.tools import TOOL
from rewards.verifiers import VERIFIER
from serving_bridge.telemetry import LOGGER_DOOR
from tests.conftest import REPOSITORY
from tests.support.installed import PACKAGES, build_wheel

#: Come with vLLM, whose builds for CPU, GPU and TPU are different distributions; only the plugin imports them.
WITH_VLLM = {"vllm", "torch"}
#: Run in environments of the peers that Weir is measured beside.
PEERS = {f"tools/bench/end_to_end/{name}_driver.py" for name in ("trl", "tunix")}
PEERS |= {"tools/bench/rewards/mathematics.py"}
#: Runs in XManager's environment.
PEERS |= {"tools/launch/xm_launch.py"}


def _project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def _requirements(*extras: str) -> dict[str, Requirement]:
    project = _project()
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    found = {}
    for text in texts:
        requirement = Requirement(text)
        if requirement.name == "weir":
            found |= _requirements(*requirement.extras)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


def _third_party(folders: tuple[str, ...]) -> dict[str, set[str]]:
    """Module -> files that import it."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for path in (REPOSITORY / folder).rglob("*.py"):
            for module in _imports(path):
                if module not in sys.stdlib_module_names and module not in PACKAGES:
                    found.setdefault(module, set()).add(str(path.relative_to(REPOSITORY)))
    return found


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def _is_declared(module: str, declared: set[str]) -> bool:
    distributions = _distributions().get(module, [module])
    return any(canonicalize_name(name) in declared for name in distributions)


def test_every_imported_package_is_declared():
    declared = set(_requirements("cpu", "parquet", "signing"))
    missing = {m: files - PEERS for m, files in _third_party(PACKAGES).items() if not _is_declared(m, declared)}
    assert {m: files for m, files in missing.items() if files and m not in WITH_VLLM} == {}


def test_the_serving_side_needs_no_jax():
    declared = set(_requirements("serving", "parquet", "signing"))
    assert not declared & {"jax", "flax", "optax", "orbax-checkpoint"}
    for module, files in _third_party(("serving_bridge", "rewards", "configs")).items():
        files -= {"learner_jax/conversion/convert.py"}
        assert not files or module in WITH_VLLM or _is_declared(module, declared), (module, files)


def test_every_dependency_is_bounded_above():
    unbounded = [
        str(requirement)
        for requirement in _requirements("cpu", "gpu", "tpu", "serving").values()
        if not any(specifier.operator in ("<", "==", "<=") for specifier in requirement.specifier)
    ]
    assert unbounded == []


def test_the_tested_combination_lies_within_the_bounds():
    text = "\n".join((REPOSITORY / "tools/requirements" / name).read_text() for name in ("demo.txt", "dev.txt"))
    pins = {canonicalize_name(r.name): r for r in map(Requirement, re.findall(r"^[^#\s][^\\\n]*", text, re.MULTILINE))}
    for name, requirement in _requirements("cpu", "dev").items():
        version = next(iter(pins[name].specifier)).version
        assert requirement.specifier.contains(version), (str(requirement), version)


LISTS = ("installers", "torch", "engine", "demo", "dev")


def test_no_package_is_wanted_in_two_versions():
    """The lists of the tests and of the demo are installed together."""
    wanted: dict[str, set[str]] = {}
    for name in ("demo.txt", "dev.txt"):
        text = (REPOSITORY / "tools/requirements" / name).read_text()
        for package, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;]+)", text, re.MULTILINE):
            wanted.setdefault(package.lower(), set()).add(version)
    assert {package: versions for package, versions in wanted.items() if len(versions) > 1} == {}


def test_every_file_that_is_installed_has_a_known_hash():
    """A package index, or whoever stands before it, can't give us another file under a pinned name."""
    for name in LISTS:
        text = (REPOSITORY / "tools/requirements" / f"{name}.txt").read_text()
        entries = re.findall(r"^[^#\s].*(?:\n\s+.*)*", text, re.MULTILINE)
        assert entries
        for entry in entries:
            first, *hashes = (line.strip(" \\") for line in entry.splitlines())
            assert len(Requirement(first).specifier) == 1, first
            assert next(iter(Requirement(first).specifier)).operator == "==", first
            assert hashes, f"{name}.txt: {first} has no hash"
            assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), entry


def test_installations_ask_for_hashes():
    script = (REPOSITORY / "tools/install.sh").read_text().replace("\\\n", " ")
    lists = re.findall(r'\$requirements"?/(\w+)\.txt', script)
    assert set(lists) <= set(LISTS)
    installing = [line for line in script.splitlines() if re.search(r"(pip\" install|uv_install|pip_install) ", line)]
    installing = [line for line in installing if "()" not in line]
    assert len(installing) >= 5
    for line in installing:
        has_hashes = "--require-hashes" in line or "arguments" in line or "torch[@]" in line or '"$@"' in line
        assert has_hashes or "--editable ." in line, line
    assert "index-strategy" not in script
    assert "extra-index" not in script


def test_a_file_with_another_hash_is_not_installed(tmp_path: Path):
    wheel = tmp_path / "weir_other-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("weir_other.py", "")
        archive.writestr("weir_other-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: weir-other\nVersion: 1.0\n")
        archive.writestr(
            "weir_other-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("weir_other-1.0.dist-info/RECORD", "")
    known = hashlib.sha256(wheel.read_bytes()).hexdigest()
    outcomes = []
    for hashed in (known, "0" * 64):
        (tmp_path / "list.txt").write_text(f"weir-other==1.0 --hash=sha256:{hashed}\n")
        options = f"--no-index --no-deps --target {tmp_path / 'to'} --find-links {tmp_path} --require-hashes"
        command = [sys.executable, "-m", "pip", "install", *options.split(), f"--requirement={tmp_path / 'list.txt'}"]
        outcomes.append(subprocess.run(command, capture_output=True, text=True, timeout=120, check=False))
    assert outcomes[0].returncode == 0, outcomes[0].stderr
    assert outcomes[1].returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in outcomes[1].stderr


def test_vllm_finds_the_weight_plugin_where_it_is_declared():
    target = _project()["entry-points"]["vllm.general_plugins"]["weir"]
    module, function = target.split(":")
    path = REPOSITORY / Path(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    functions = {node.name for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert function in functions


@pytest.mark.parametrize(
    "door", [TASK, REWARD, DATA, ENVIRONMENT, TOOL, VERIFIER, LOGGER_DOOR], ids=lambda door: door.kind
)
def test_what_comes_with_weir_is_declared_as_entry_points(door: Door):
    declared = _project()["entry-points"].get(f"weir.{door.kind}", {})
    assert declared == dict(door.built_in)
    for name in declared:
        assert callable(door.load(name))


def test_the_wheel_carries_configs_templates_and_plugin(tmp_path: Path):
    names = set(zipfile.ZipFile(build_wheel(tmp_path)).namelist())
    kept = {str(p.relative_to(REPOSITORY)) for folder in PACKAGES for p in (REPOSITORY / folder).rglob("*.py")}
    kept |= {f"configs/{path.name}" for path in (REPOSITORY / "configs").glob("*.toml")}
    kept |= {"configs/monitoring/rules.yml", "configs/monitoring/dashboards/training.json"}
    assert (
        kept | {"tools/templates/report.html", "tools/requirements/demo.txt", "tools/install.sh", "rewards/py.typed"}
        <= names
    )


def test_imports_go_in_one_direction():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    stated = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert f"{len(stated)} kept, 0 broken" in done.stdout


def _bare_copy(folder: Path) -> Path:
    shutil.copytree(REPOSITORY / "tools/requirements", folder / "tools/requirements")
    for name in ("tools/install.sh", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder / name)
    return folder / "tools/install.sh"


@pytest.mark.parametrize(
    ("goal", "python", "said"),
    [
        ("lunch", sys.executable, "unknown goal 'lunch': expected demo or dev"),
        ("demo --no-lunch", sys.executable, "unknown option '--no-lunch': expected --no-trial"),
        ("demo", "no-such-python", "no no-such-python: install Python 3.11 or newer, or set PYTHON"),
        ("demo", "/bin/false", "is too old: Weir needs 3.11 or newer"),
    ],
)
def test_an_installation_that_can_not_work_says_why(tmp_path: Path, goal: str, python: str, said: str):
    script = _bare_copy(tmp_path)
    done = subprocess.run([script, *goal.split()], env={"PATH": "/usr/bin:/bin", "PYTHON": python}, capture_output=True,
                          text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / ".venv").exists()
