"""Runs on Kubernetes: manifests written for `kubectl apply -k`, which then asks about and stops what they describe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from configs.load import load_config
from learner_jax.runtime import printable
from tools.assembly import RunPaths, Start, run_paths
from tools.launch.checks import require_launchable
from tools.launch.kubernetes import Manifest, manifests, name_of
from tools.launch.shown import role_lines
from tools.launch.started import LaunchError


class Kubernetes:
    """A cluster that this host need not reach."""

    def start(self, start: Start, *, dry: bool, out: Path | None = None) -> int:
        """Writes the manifests into `out`, or prints them.

        Raises:
          LaunchError: it is not a dry run; what is applied to a cluster is a person's to decide.
        """
        config, paths = start.config, run_paths(start.config)
        require_launchable(config, paths, "kubernetes")
        if not dry:
            raise LaunchError("--on kubernetes writes manifests: add --dry-run --out DIR, then kubectl apply -k DIR")
        files = {name: as_yaml(parts) for name, parts in manifests(config, paths).items()}
        if out is None:
            for line in ("# roles", *role_lines(config), "", *(f"# {name}\n{text}" for name, text in files.items())):
                print(printable(line, keep_lines=True))
            return 0
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")
        print(printable(f"wrote {len(files)} files; start by: kubectl apply -k {out}"))
        return 0

    def status(self, paths: RunPaths) -> str:
        raise LaunchError(f"ask the cluster: kubectl get all --selector {_selector(paths)}")

    def stop(self, paths: RunPaths) -> str:
        raise LaunchError(f"ask the cluster: kubectl delete jobset,deployment --selector {_selector(paths)}")


def as_yaml(parts: Sequence[Manifest]) -> str:
    """Documents of one file; texts of several lines stand as such."""
    return str(yaml.dump_all(parts, Dumper=_Dumper, sort_keys=False))


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines in YAML's literal style, and what stands twice twice, for tools without aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _selector(paths: RunPaths) -> str:
    return f"app.kubernetes.io/instance={name_of(load_config(paths.config))}"
