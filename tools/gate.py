"""Says whether a candidate may be shown to users: suites asked of it and of the version that they have now.

    python -m tools.gate --config C.toml --gate G.toml --registry registry --candidate 7 --out gates/7
    python -m tools.gate --config C.toml --gate G.toml --registry registry --candidate 7 --stable 5 --out gates/7

The gate's file names suites and what each metric must hold; docs/gate.md has its keys. Without --stable the candidate
is compared with the alias stable. Answers are kept in --out: the same command goes on where it was stopped. The report
is kept with the candidate in the registry, and a candidate that passed gets the stage passed.

Exit status: 0 if it passed, 1 if it did not, 2 for arguments that make no sense, 78 for a file that can't be used.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from configs.schema import Config
from learner_jax.runtime import printable
from serving_bridge.registry import Registry, RegistryError, Standing, model_card
from tools.assembly import build_serving_registry, clear_errors, config_arguments, read_arguments
from tools.command_line import command_parser
from tools.gating import Contest, Gate, Gated, GateError, Judge, JudgeSettings, load_gate, run_gate, write_gate_page

_ACTOR = "tools.gate"


def main() -> None:
    parser = _parser()
    with clear_errors():
        arguments, config, _ = read_arguments(parser)
        if arguments.registry is not None:
            named = config.registry.model_copy(update={"path": str(arguments.registry)})
            config = config.model_copy(update={"registry": named})
        if arguments.concurrency < 1:
            parser.error(f"--concurrency is {arguments.concurrency}, expected a whole number from 1 on")
        if not config.registry.path:
            parser.error("expected --registry, or registry.path in the configuration")
        gate = load_gate(arguments.gate)  # what is wrong with it is told before anything is read
        with closing(build_serving_registry(config)) as registry:
            passed = _held(registry, config, arguments, gate)
    sys.exit(0 if passed else 1)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("gate", __doc__)
    config_arguments(parser)
    parser.add_argument("--gate", type=Path, required=True, help="TOML file of the gate")
    parser.add_argument("--registry", type=Path, help="folder of the registry (default: registry.path)")
    parser.add_argument("--candidate", required=True, metavar="ENTRY", help="number or alias of the candidate")
    parser.add_argument("--stable", metavar="ENTRY", help="what it is compared with (default: the alias stable)")
    parser.add_argument("--out", type=Path, required=True, help="folder of answers and report")
    parser.add_argument("--concurrency", type=int, default=64, help="answers in work at a time (default: 64)")
    return parser


def _held(registry: Registry, config: Config, arguments: argparse.Namespace, gate: Gate) -> bool:
    namespace = config.registry.namespace
    candidate = _standing(registry, namespace, arguments.candidate)
    stable = _stable(registry, namespace, arguments.stable)
    check_alike(candidate, stable)
    arguments.out.mkdir(parents=True, exist_ok=True)
    serving = config.serving.model_copy(update={"follow": "newest"})
    with _folders(registry, arguments.out, candidate, stable) as (own, other):
        contest = Contest(
            gate=gate,
            candidate=own,
            stable=other,
            out=arguments.out,
            training=str(arguments.config),
            serving=serving,
            concurrency=arguments.concurrency,
            judge=_judge(gate.settings.judge),
        )
        gated = run_gate(contest, lambda text: print(printable(text), file=sys.stderr))
    return _kept(registry, arguments, candidate, stable, gated)


def _kept(
    registry: Registry, arguments: argparse.Namespace, candidate: Standing, stable: Standing | None, gated: Gated
) -> bool:
    """Writes the report, keeps it with the entry, and moves the entry on if it passed."""
    entry = candidate.entry
    report = {**gated.report, "entries": {"candidate": entry.id, "stable": stable.entry.id if stable else None}}
    written, page = write_gate_page(arguments.out, report)
    against = f"against {stable.entry.id}" if stable else "without a stable version"
    registry.add_report(
        entry.namespace,
        entry.number,
        written.name,
        written.read_bytes(),
        verdict=report["verdict"],
        actor=_ACTOR,
        reason=f"gate {report['gate']} {against}",
    )
    if gated.passed and registry.index.standing(entry.namespace, entry.number).stage == "candidate":
        registry.index.set_stage(entry.namespace, entry.number, "passed", actor=_ACTOR, reason=f"gate {report['gate']}")
    for check in report["checks"]:
        print(printable(f"{check['outcome']}: {check['suite']} {check['metric']} {check['note']}".rstrip()))
    print(printable(f"{entry.id} has {report['verdict']}; {page}"))
    return gated.passed


def check_alike(candidate: Standing, stable: Standing | None) -> None:
    """Raises `GateError` where conversations could not go on from one to the other."""
    if stable is None:
        return
    one, other = candidate.entry, stable.entry
    if one.number == other.number:
        raise GateError(f"candidate and stable are both {one.id}: expected two entries")
    for what, differs in (("tokenizer", one.tokenizer != other.tokenizer), ("tensor shape", one.shape != other.shape)):
        if differs:
            raise GateError(
                f"candidate {one.id} has another {what} than {other.id}: conversations can't go on from one to the "
                f"other; register it in a namespace of its own"
            )


def _standing(registry: Registry, namespace: str, name: str) -> Standing:
    return registry.index.standing(namespace, registry.index.aliases.resolve(namespace, name))


def _stable(registry: Registry, namespace: str, name: str | None) -> Standing | None:
    """None where users have nothing yet."""
    if name is None and "stable" not in registry.index.aliases.current(namespace):
        return None
    return _standing(registry, namespace, name or "stable")


@contextmanager
def _folders(
    registry: Registry, out: Path, candidate: Standing, stable: Standing | None
) -> Iterator[tuple[Path, Path | None]]:
    """Both entries as model folders, for as long as they are asked. Raises `RegistryError` if weights are gone."""
    scratch = Path(tempfile.mkdtemp(prefix="models-", dir=out))
    try:
        folders: list[Path | None] = []
        for standing in (candidate, stable):
            if standing is None:
                folders.append(None)
                continue
            folder = scratch / str(standing.entry.number)
            registry.export(standing, folder, readme=model_card(standing, []))
            folders.append(folder)
        own, other = folders
        if own is None:
            raise RegistryError("there is no candidate")
        yield own, other
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _judge(settings: JudgeSettings | None) -> Judge | None:
    if settings is None:
        return None
    key = os.environ.get(settings.key_env, "") if settings.key_env else ""
    if settings.key_env and not key:
        raise GateError(f"judge.key_env names {settings.key_env}, which the environment has not: set it to the key")
    return Judge(settings, key)


if __name__ == "__main__":
    main()
