"""Manifests of a run: every command, flag, port and path is one that the code has; roles reach only whom they must."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import load_config, parse_config
from configs.schema import Config
from serving_bridge.access import gate
from tests.support.kubernetes_kinds import GROUP_LABELS, kind_problems, service_of
from tests.support.shown_commands import parsed
from tools.assembly import run_paths
from tools.assembly.before_start import PreflightError
from tools.assembly.run_directory import choose
from tools.launch.checks import require_launchable
from tools.launch.kubernetes import COORDINATOR_PORT, manifests, name_of
from tools.launch.kubernetes_backend import Kubernetes, as_yaml
from tools.launch.kubernetes_own import OWN_FOLDER
from tools.launch.started import LaunchError

ROLES = (
    'launch.shared=["/shared", "/data"]',
    *(
        f"launch.{role}.{text}"
        for role in ("learner", "rollout", "fleet")
        for text in ("cpus=4", "memory_gib=8", "image=r.example/weir:1")
    ),
    *("learner.hosts.count=2", "launch.fleet.hosts=3", "serving.replicas=2", "launch.rollout.hosts=5"),
    *("launch.learner.devices=4", "launch.learner.device=tpu", "launch.learner.device_type=tpu-v5p-slice"),
    *("launch.learner.topology=2x2x2", "launch.fleet.devices=1", "launch.fleet.device_type=NVIDIA-H100"),
    *("launch.rollout.variables.JUDGE_API_KEY=env:JUDGE", "launch.rollout.variables.PLAIN=x"),
    "store.database=postgresql://weir@db/weir",
)


def a_run(*overrides: str) -> Config:
    return load_config("demo", ["run.directory=/shared/run", *ROLES, *overrides])


def files(config: Config) -> dict[str, list[dict[str, Any]]]:
    """What a reader of the written files finds."""
    written = manifests(config, run_paths(config))
    return {name: list(yaml.safe_load_all(as_yaml(parts))) for name, parts in written.items()}


def pods(found: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(job or role, specification of its pods)."""
    for job in found["learner.yaml"][0]["spec"]["replicatedJobs"]:
        yield job["name"], job["template"]["spec"]["template"]["spec"]
    for name in ("rollout", "fleet"):
        yield name, found[f"{name}.yaml"][0]["spec"]["template"]["spec"]


def test_every_command_is_what_its_parser_takes_and_its_paths_are_mounted() -> None:
    config = a_run()
    names = []
    for name, spec in pods(files(config)):
        (container,) = spec["containers"]
        python, flags, module, command, *given = container["command"]
        assert (python, flags, module) == ("python", "-P", "-m")
        parsed(command, command, [part.replace("$(POD_NAME)", "x").replace("$(POD_IP)", "10.0.0.1") for part in given],
               is_whole=True)  # fmt: skip
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"name": "memory", "emptyDir": {"medium": "Memory"}} in spec["volumes"]
        assert "/dev/shm" in [mount["mountPath"] for mount in container["volumeMounts"]]
        variables = {variable["name"] for variable in container["env"]}
        assert all(part[2:-1] in variables for part in given if part.startswith("$("))
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        for part in given:
            assert not part.startswith("/") or any(part.startswith(f"{mount}/") for mount in mounts), part
        names.append((name, command))
    assert names == [
        *(("warm-start", "tools.learner"), ("learner", "tools.learner"), ("convert", "tools.convert")),
        *(("rollout", "tools.rollout"), ("fleet", "tools.serve")),
    ]


def test_ports_and_probes_are_those_of_the_servers() -> None:
    found = files(a_run("serving.port=9000", "serving.start_timeout_s=100"))
    spec = dict(pods(found))["fleet"]["containers"][0]
    assert [port["containerPort"] for port in spec["ports"]] == [9000, 9001]
    assert "serving.port=9000" in spec["command"]
    for probe in ("startupProbe", "readinessProbe"):
        asked = spec[probe]["httpGet"]
        assert asked["port"] == 9000
        assert any(r.method == "GET" and r.path == asked["path"].encode() and r.role is None for r in gate._ROUTES)
    assert spec["startupProbe"]["periodSeconds"] * spec["startupProbe"]["failureThreshold"] >= 100
    assert [port["port"] for port in found["fleet.yaml"][1]["spec"]["ports"]] == [9000, 9001]
    given = parse_config(yaml_toml(found), origin="x")
    assert (given.serving.port, given.run.directory) == (9000, "/shared/run")


def yaml_toml(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(found["config.yaml"][0]["data"]["config.toml"])


def test_learners_meet_by_name_and_wait_for_what_comes_before() -> None:
    found = files(a_run())
    job_set = found["learner.yaml"][0]
    jobs = {job["name"]: job for job in job_set["spec"]["replicatedJobs"]}
    assert {name: job.get("dependsOn") for name, job in jobs.items()} == {
        "warm-start": None,
        "learner": [{"name": "warm-start", "status": "Complete"}],
        "convert": [{"name": "learner", "status": "Complete"}],
    }
    learner = jobs["learner"]["template"]["spec"]
    assert (learner["completions"], learner["parallelism"], learner["completionMode"]) == (2, 2, "Indexed")
    (container,) = learner["template"]["spec"]["containers"]
    name = job_set["metadata"]["name"]
    assert f"learner.hosts.coordinator={name}-learner-0-0.{name}:{COORDINATOR_PORT}" in container["command"]
    assert container["ports"][0]["containerPort"] == COORDINATOR_PORT
    assert job_set["spec"]["network"]["subdomain"] == name
    assert dict(pods(found))["learner"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x2x2",
    }
    assert container["resources"]["limits"] == {"cpu": 4, "memory": "8Gi", "google.com/tpu": 4}
    assert "nodeSelector" not in dict(pods(found))["convert"]
    start = jobs["warm-start"]["template"]["spec"]
    assert (start["completions"], "ports" in start["template"]["spec"]["containers"][0]) == (1, False)
    table = 'supervised={ data = "/data/x.jsonl", steps = 1, batch_size = 4, learning_rate = 1e-3 }'
    (start, *_) = files(a_run("warm_start=none", table))["learner.yaml"][0]["spec"]["replicatedJobs"]
    assert start["template"]["spec"]["completions"] == 2
    (container,) = start["template"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][-3:] == [
        "--set", f"learner.hosts.coordinator={name}-warm-start-0-0.{name}:{COORDINATOR_PORT}", "--warm-start",
    ]  # fmt: skip
    alone = files(load_config("demo", ["run.directory=/shared/run", *ROLES, "learner.hosts.count=1", "warm_start=none",
                                       "model.create=none", "model.path=/data/m"]))  # fmt: skip
    jobs = {job["name"]: job for job in alone["learner.yaml"][0]["spec"]["replicatedJobs"]}
    assert list(jobs) == ["learner", "convert"]
    assert "dependsOn" not in jobs["learner"]


def test_secrets_are_references_to_the_runs_secret() -> None:
    config = a_run()
    env = {variable["name"]: variable for variable in dict(pods(files(config)))["rollout"]["containers"][0]["env"]}
    secret = {"secretKeyRef": {"name": f"{name_of(config)}-secrets", "key": "JUDGE"}}
    assert env["JUDGE_API_KEY"]["valueFrom"] == secret
    assert env["PLAIN"]["value"] == "x"


def test_only_workers_reach_the_servers_and_nobody_the_workers() -> None:
    found = files(a_run())
    policies = {policy["spec"]["podSelector"]["matchLabels"]["weir/role"]: policy["spec"]
                for policy in found["network.yaml"]}  # fmt: skip
    assert policies.keys() == {"fleet", "learner", "rollout"}
    assert all(policy["policyTypes"] == ["Ingress"] for policy in policies.values())
    assert policies["rollout"]["ingress"] == []
    (rule,) = policies["fleet"]["ingress"]
    assert [source["podSelector"]["matchLabels"]["weir/role"] for source in rule["from"]] == ["rollout"]
    assert [port["port"] for port in rule["ports"]] == [8000, 8001]
    for role in ("fleet", "rollout"):
        deployment = found[f"{role}.yaml"][0]["spec"]
        labels = deployment["template"]["metadata"]["labels"]
        assert policies[role]["podSelector"]["matchLabels"].items() <= labels.items()
        assert deployment["selector"]["matchLabels"].items() <= labels.items()
    assert {budget["spec"]["selector"]["matchLabels"]["weir/role"] for budget in found["disruptions.yaml"]} == {
        *("fleet", "rollout"),
    }


def test_a_replica_of_several_hosts_is_a_group_whose_first_pod_leads() -> None:
    config = a_run(*SEVERAL_HOSTS)
    found = files(config)
    groups, service = found["fleet.yaml"]
    assert (groups["kind"], groups["apiVersion"]) == ("LeaderWorkerSet", "leaderworkerset.x-k8s.io/v1")
    assert groups["spec"]["replicas"] == 3
    template = groups["spec"]["leaderWorkerTemplate"]
    assert (template["size"], template["restartPolicy"]) == (2, "None")
    (leader,), (worker,) = (template[f"{one}Template"]["spec"]["containers"] for one in ("leader", "worker"))
    name = groups["metadata"]["name"]
    variables = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in worker["env"] if "valueFrom" in one}
    assert variables["WEIR_GROUP"] == "metadata.labels['leaderworkerset.sigs.k8s.io/group-index']"
    assert variables["WEIR_HOST"] == "metadata.labels['leaderworkerset.sigs.k8s.io/worker-index']"
    given = dict(zip(worker["command"], worker["command"][1:], strict=False))
    # A LeaderWorkerSet names its first pods after itself and the group's number.
    assert given["--name"].replace("$(WEIR_GROUP)", "1") == f"{name}-1"
    assert given["--further-host"] == "$(WEIR_HOST)"
    assert "readinessProbe" in leader
    assert "readinessProbe" not in worker
    assert "--further-host" not in leader["command"]
    for container in (leader, worker):
        plain = [re.sub(r"\$\(WEIR_HOST\)", "1", part) for part in container["command"]]
        plain = [re.sub(r"\$\(\w+\)", "x", part) for part in plain]
        parsed(plain[3], plain[3], plain[4:], is_whole=True)
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert service["spec"]["selector"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    policies = {one["spec"]["podSelector"]["matchLabels"]["weir/role"]: one["spec"] for one in found["network.yaml"]}
    workers, among = policies["fleet"]["ingress"]
    assert [source["podSelector"]["matchLabels"]["weir/role"] for source in among["from"]] == ["fleet"]
    assert "ports" in workers
    assert "ports" not in among


SEVERAL_HOSTS = (
    *("launch.fleet.hosts=6", "serving.replicas=1", "serving.hosts_per_replica=2", "serving.tensor_parallel_size=2"),
)


@pytest.mark.parametrize(
    "overrides", [(), SEVERAL_HOSTS, ("warm_start=none", "model.create=none", "model.path=/data/m")]
)
def test_job_sets_and_groups_hold_only_what_their_kinds_take(overrides: tuple[str, ...]) -> None:
    found = files(a_run(*overrides))
    custom = [part for parts in found.values() for part in parts if ".x-k8s.io/" in part["apiVersion"]]
    assert [part["kind"] for part in custom] == (
        ["JobSet", "LeaderWorkerSet"] if overrides == SEVERAL_HOSTS else ["JobSet"]
    )
    for part in custom:
        assert kind_problems(part) == []
        # The first job depends on nothing, and each other only on one before it.
        seen: list[str] = []
        for job in part["spec"].get("replicatedJobs", ()):
            assert all(before["name"] in seen for before in job.get("dependsOn", ()))
            seen.append(job["name"])
            assert len(f"{part['metadata']['name']}-{job['name']}-0-9999") <= 63
    # Controllers make headless Services of these names, and take one that is there for theirs.
    services = {part["metadata"]["name"] for parts in found.values() for part in parts if part["kind"] == "Service"}
    assert not services & {service_of(part) for part in custom}
    used = set(re.findall(r"leaderworkerset\.sigs\.k8s\.io/[a-z-]+", as_yaml([p for ps in found.values() for p in ps])))
    assert used <= GROUP_LABELS


def test_the_kinds_see_what_is_wrong() -> None:
    (groups,) = [part for part in files(a_run(*SEVERAL_HOSTS))["fleet.yaml"] if part["kind"] == "LeaderWorkerSet"]
    template = groups["spec"]["leaderWorkerTemplate"]
    template["restartPolicy"] = "Never"
    template["leaderTemplat"] = template.pop("leaderTemplate")
    template["workerTemplate"]["spec"]["containers"][0]["readyProbe"] = {}
    groups["spec"]["replicas"] = "3"
    said = "\n".join(kind_problems(groups))
    for word in (
        "'Never' is not one of",
        "'leaderTemplat' was unexpected",
        "'readyProbe' was unexpected",
        "spec.replicas",
    ):
        assert word in said


OWN = (
    *(
        f"launch.{role}.{text}"
        for role in ("database", "serving")
        for text in ("cpus=2", "memory_gib=4", "image=r.example/own:1")
    ),
    'launch.database.command=["postgres", "-D", "/var/lib/weir/data", "-h", "{address}"]',
    'launch.serving.command=["gateway", "--number", "{index}"]',
    *("launch.serving.hosts=3", "launch.database.variables.PGPASSWORD=env:PGPASSWORD"),
)


def test_programs_of_the_user_keep_name_number_and_volume() -> None:
    config = a_run(*OWN)
    require_launchable(config, run_paths(config), "kubernetes")
    found = files(config)
    for role, count, command in (
        ("database", 1, ["postgres", "-D", f"{OWN_FOLDER}/data", "-h", "$(POD_IP)"]),
        ("serving", 3, ["gateway", "--number", "$(WEIR_INDEX)"]),
    ):
        stateful, service = found[f"{role}.yaml"]
        spec = stateful["spec"]
        assert (stateful["kind"], spec["replicas"]) == ("StatefulSet", count)
        assert spec["serviceName"] == service["metadata"]["name"] == f"{name_of(config)}-{role}"
        labels = spec["template"]["metadata"]["labels"]
        assert service["spec"]["selector"] == spec["selector"]["matchLabels"] == labels
        (container,) = spec["template"]["spec"]["containers"]
        assert container["command"] == command
        variables = {one["name"]: one for one in container["env"]}
        assert all(part[2:-1] in variables for part in command if part.startswith("$("))
        index = variables["WEIR_INDEX"]["valueFrom"]["fieldRef"]["fieldPath"]
        assert index == "metadata.labels['apps.kubernetes.io/pod-index']"
        volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
        claimed = {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes | claimed
        assert OWN_FOLDER in {mount["mountPath"] for mount in container["volumeMounts"]}
    secret = {one["name"]: one for one in found["database.yaml"][0]["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert secret["PGPASSWORD"]["valueFrom"]["secretKeyRef"]["key"] == "PGPASSWORD"
    assert {"database.yaml", "serving.yaml"} <= set(found["kustomization.yaml"][0]["resources"])


def test_the_run_reaches_its_database_and_a_serving_role_the_servers() -> None:
    found = files(a_run(*OWN))
    policies = {one["spec"]["podSelector"]["matchLabels"]["weir/role"]: one["spec"] for one in found["network.yaml"]}

    def reach(role: str) -> list[str]:
        (rule,) = policies[role]["ingress"]
        return [source["podSelector"]["matchLabels"]["weir/role"] for source in rule["from"]]

    assert policies.keys() == {"fleet", "learner", "rollout", "database"}
    assert reach("fleet") == ["rollout", "serving"]
    assert reach("database") == ["learner", "rollout", "fleet", "database", "serving"]
    assert {one["spec"]["selector"]["matchLabels"]["weir/role"] for one in found["disruptions.yaml"]} == {
        *("fleet", "rollout", "database", "serving"),
    }
    assert not {"database.yaml", "serving.yaml"} & set(files(a_run()))


def test_the_index_names_every_file_and_every_claim_is_made() -> None:
    found = files(a_run())
    (index,) = found["kustomization.yaml"]
    assert {*index["resources"], "kustomization.yaml"} == set(found)
    claims = {claim["metadata"]["name"] for claim in found["storage.yaml"]}
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for _, spec in pods(found)
        for volume in spec["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == used
    assert len(claims) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["launch.fleet.image="], r"launch\.fleet\.image: expected a container image, got none"),
        (["launch.rollout.variables.A=file:/x"], r'rollout\.variables\.A: expected "env:KEY", got file:/x'),
        (["store.weights=/elsewhere"], r"store\.weights: expected to lie in"),
        (["store.database="], r"store\.database: expected postgresql"),
    ],
)
def test_what_pods_cannot_run_is_refused(overrides: list[str], message: str) -> None:
    config = a_run(*overrides)
    with pytest.raises(PreflightError, match=message):
        require_launchable(config, run_paths(config), "kubernetes")


def test_files_are_written_and_nothing_is_applied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = choose(a_run(*OWN))
    with pytest.raises(LaunchError, match="add --dry-run --out DIR"):
        Kubernetes().start(start, dry=False)
    assert Kubernetes().start(start, dry=True, out=tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(files(a_run(*OWN)))
    assert not re.search(r": [&*]", (tmp_path / "out" / "fleet.yaml").read_text())
    assert "config.toml: |" in (tmp_path / "out" / "config.yaml").read_text()
    if (validate := shutil.which("kubernetes-validate")) is not None:
        written = [str(path) for path in (tmp_path / "out").iterdir() if path.name not in _OTHERS]
        done = subprocess.run(
            [validate, "--strict", *written], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


#: of kinds that are not Kubernetes' own, whose schemas the validator lacks
_OTHERS = ("kustomization.yaml", "learner.yaml")
