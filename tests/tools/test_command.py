"""`weir` runs every command, from any folder, and says what there is without loading anything heavy."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import io
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from configs.load import load_config
from serving_bridge.processes import python_module, with_own_packages
from tests.conftest import REPOSITORY
from tools.assembly import processes, run_paths
from tools.command_line import command_parser
from tools.commands import COMMANDS
from tools.completion import script

SCRIPT = f"""#!{sys.executable}
import sys
from tools.command import main
if __name__ == "__main__":
    sys.exit(main())
"""
HEAVY = ("jax", "aiohttp", "pydantic", "numpy", "rich", "msgspec", "apsw", "argparse", "importlib.metadata")


@pytest.fixture
def weir(tmp_path: Path) -> Path:
    """A console script as pip writes it, in a folder of its own."""
    path = tmp_path / "bin" / "weir"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    path.chmod(0o755)
    return path


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """A folder whose modules have the names of Weir's packages."""
    folder = tmp_path / "mine"
    for name in ("tools", "configs"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise SystemExit('the module of the user')\n")
    (folder / "rewards.py").write_text("raise SystemExit('the module of the user')\n")
    return folder


def called(command: list[str | Path], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {"COLUMNS": "200"}
    return subprocess.run(
        command, cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=300, check=False
    )


def said(weir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return called([weir, *arguments], weir.parent, PYTHONPATH=str(REPOSITORY))


def test_the_console_script_is_declared() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"weir": "tools.command:main"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_main_and_a_parser_of_its_name(name: str) -> None:
    tree = ast.parse((REPOSITORY / (COMMANDS[name].module.replace(".", "/") + ".py")).read_text())
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert f"command_parser('{name}', __doc__)" in calls
    takes_config = any(call.startswith("config_arguments(") for call in calls)
    assert takes_config == COMMANDS[name].configured


def test_help_lists_the_commands_and_loads_nothing_heavy(weir: Path) -> None:
    code = "import sys; sys.argv = ['weir', '--help']; from tools.command import main; main(); print(*sys.modules)"
    *lines, modules = called(
        [sys.executable, "-P", "-S", "-c", code], weir.parent, PYTHONPATH=str(REPOSITORY)
    ).stdout.splitlines()
    assert not set(HEAVY) & set(modules.split())
    for name, command in COMMANDS.items():
        assert any(line.split() == [name, *command.help.split()] for line in lines), name


def test_version_names_the_package_and_the_commit(weir: Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    commit = f" (commit {head.stdout.strip()})" if head.returncode == 0 else ""
    assert said(weir, "--version").stdout == f"weir {importlib.metadata.version('weir')}{commit}\n"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("trian", "unknown command 'trian'; did you mean train"),
        ("database-migrate", "did you mean database"),
        ("\x1b[31mx", "unknown command '\\x1b[31mx'; `weir --help` lists all"),
    ],
)
def test_an_unknown_command_is_refused_with_the_nearest_names(weir: Path, name: str, answer: str) -> None:
    done = said(weir, name)
    assert done.returncode == 2
    assert answer in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_command_at_all_is_refused_with_help(weir: Path) -> None:
    done = said(weir)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: weir COMMAND")


def test_help_of_a_command_calls_it_as_it_was_called(weir: Path) -> None:
    by_weir = said(weir, "queue", "--help").stdout
    assert by_weir.startswith("usage: weir queue ")
    assert "weir queue runs/demo dead" in by_weir
    assert "python -m" not in by_weir
    by_module = called([*python_module("tools.queue"), "--help"], weir.parent, PYTHONPATH=str(REPOSITORY)).stdout
    assert by_module.startswith("usage: python -m tools.queue ")
    assert "python -m tools.queue runs/demo dead" in by_module


def test_errors_of_a_command_name_it(weir: Path) -> None:
    done = said(weir, "queue")
    assert done.returncode == 2
    assert "weir queue: error: the following arguments are required: queue" in done.stderr


@pytest.mark.parametrize("command", ["doctor", "train"])
def test_a_users_modules_do_not_stand_in_for_those_of_weir(weir: Path, users_folder: Path, command: str) -> None:
    done = called([weir, command, "--help"], users_folder, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: weir {command} ")


def test_python_m_finds_weirs_own_packages_beside_a_users(users_folder: Path) -> None:
    (users_folder / "tools" / "__init__.py").unlink()
    (users_folder / "tools").rmdir()
    done = called([sys.executable, "-m", "tools.train", "--help"], users_folder, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python -m tools.train ")


def test_python_m_still_finds_what_only_the_user_has(users_folder: Path) -> None:
    (users_folder / "tools" / "__init__.py").unlink()
    (users_folder / "tools").rmdir()
    (users_folder / "mine.py").write_text("print('mine')\n")
    code = "import sys; sys.argv[:] = ['-m']; import tools, mine; print(sys.path.index(''))"
    found = called([sys.executable, "-c", code], users_folder, PYTHONPATH=str(REPOSITORY))
    assert found.stdout.split()[0] == "mine", found.stderr
    assert int(found.stdout.split()[1]) > 1


def test_the_processes_of_a_job_are_started_without_the_working_folder(tmp_path: Path) -> None:
    told = [f"run.directory={tmp_path}", "learner.hosts.count=2"]
    config = load_config(REPOSITORY / "configs" / "demo.toml", told)
    commands = [c for p in processes.planned(config, run_paths(config)) for c in p.commands]
    assert len(commands) == 6
    for command in commands:
        assert command[:3] == [sys.executable, "-P", "-m"]
        assert re.fullmatch(r"tools\.\w+", command[3])


def test_a_child_process_runs_weirs_own_module_in_a_users_folder(users_folder: Path) -> None:
    environment = with_own_packages({"PATH": os.environ["PATH"]})
    done = called([*python_module("tools.doctor"), "--help"], users_folder, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python -m tools.doctor ")


def completed(weir: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    program = f"""{script("bash")}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); compopt() {{ :; }}
_weir; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    path = f"{weir.parent}{os.pathsep}{os.environ['PATH']}"
    done = called(["bash", "-c", program, "bash", *words], weir.parent, PATH=path, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_bash_completes_commands_options_and_configurations(weir: Path) -> None:
    (weir.parent / "mine.toml").touch()
    assert completed(weir, "weir", "le") == ["learner"]
    assert completed(weir, "weir", "train", "--") == ["--help", "--config", "--set"]
    assert completed(weir, "weir", "view", "--") == ["--help"]
    assert completed(weir, "weir", "train", "--config", "pod_") == ["pod_gpu", "pod_tpu"]
    assert completed(weir, "weir", "train", "--config", "mi") == ["mine.toml"]
    assert completed(weir, "weir", "completion", "z") == ["zsh"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_name_every_command(shell: str) -> None:
    text = script(shell)
    assert not re.search(r"@[A-Z]+@", text)
    for name, command in COMMANDS.items():
        assert name in text
        assert command.help.replace("'", "") in text.replace("'\\''", "").replace("\\'", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_line_that_is_no_text_is_one_clear_error(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"weir {name}", "list", os.fsdecode(b"runs/caf\xe9")])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(COMMANDS[name].module).main()
    assert ended.value.code == 2
    told = r"argument 2: expected UTF-8 text, got b'runs/caf\xe9'; rename that file"
    assert capsys.readouterr() == ("", f"weir {name}: error: {told}\n")


# Where the first of Weir's modules is loaded, a process says so and waits for a Ctrl-C.
LOADS_FOR_LONG = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "configs.load":
            print("loading", flush=True)
            time.sleep(600)
sys.meta_path.insert(0, Slow())
"""


@pytest.mark.parametrize("way", ["weir", "python -m"])
def test_ctrl_c_while_a_command_loads_is_one_line(weir: Path, tmp_path: Path, way: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(LOADS_FOR_LONG)
    command = [str(weir), "train"] if way == "weir" else [sys.executable, "-m", "tools.train"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=REPOSITORY, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loading\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"stopped by Ctrl-C\n"
    assert process.returncode == -signal.SIGINT


def test_an_argument_is_never_printed_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal would obey an escape sequence in the error, and a line feed would forge a line."""
    parser = command_parser("safety", "")
    parser.add_subparsers().add_parser("act")
    for arguments in (["\x1b[31mx"], ["act", "--\x1b[31mx\nforged"]):
        shown = io.StringIO()
        monkeypatch.setattr(sys, "stderr", shown)
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(arguments)
        assert ended.value.code == 2
        assert "\x1b" not in shown.getvalue()
        assert "\nforged" not in shown.getvalue()
        assert "x1b[31mx" in shown.getvalue()


def test_every_parser_of_a_command_line_escapes_what_it_prints() -> None:
    raw = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}"
        for path in (REPOSITORY / "tools").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ArgumentParser")
    ]
    assert raw == [], "use tools.command_line.CommandParser"
