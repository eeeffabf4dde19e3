"""A run as manifests of Kubernetes: a JobSet for the learner, Deployments for workers and fleets, StatefulSets for
programs of its user's, and what guards them.

Nothing here asks a cluster. `beside` has no meaning: every role has pods of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import tomli_w

from configs.launch import RoleName, RoleSettings, is_reference
from configs.schema import Config
from tools.assembly import Planned, RunPaths, fleets_of, hosts_of, in_directory, planned
from tools.launch.kubernetes_own import own_command, stateful_set, with_number_and_volume

Manifest = dict[str, Any]
#: where the hosts of a learner meet, and the first port of a fleet's servers where serving.port names none
COORDINATOR_PORT, SERVING_PORT = 8476, 8000
CONFIG_FOLDER = "/etc/weir"
_ENV = "env:"
#: of groups of pods, and of the labels that these get
_GROUPS, _OF_GROUP = "leaderworkerset.x-k8s.io", "leaderworkerset.sigs.k8s.io"
_USER = 1000
#: a container's own /dev/shm has 64 MiB, too few for NCCL and vLLM's workers; this one counts as the container's memory
_MEMORY = "memory"
_OWN_ROLES: tuple[RoleName, ...] = ("database", "serving")
_LIMITS = {"gpu": "nvidia.com/gpu", "tpu": "google.com/tpu"}
_NODES = {"gpu": "nvidia.com/gpu.product", "tpu": "cloud.google.com/gke-tpu-accelerator"}


def manifests(config: Config, paths: RunPaths) -> dict[str, list[Manifest]]:
    """File name -> what it holds; `kustomization.yaml` names all others."""
    run = _Run(config, paths)
    files = {
        "config.yaml": [run.config_map()],
        "storage.yaml": run.claims(),
        "learner.yaml": [run.job_set()],
        "rollout.yaml": [run.workers()],
        "fleet.yaml": [run.fleet(), run.fleet_service()],
        **{f"{role}.yaml": run.own_programs(role) for role in run.own_roles},
        "disruptions.yaml": run.budgets(),
        "network.yaml": run.policies(),
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": config.launch.namespace,
        "resources": list(files),
    }
    return {"kustomization.yaml": [kustomization], **files}


class Pods:
    """Placement of roles in pods: commands as the image has them."""

    is_elsewhere, stop_signal, address = True, 15, ""

    def put(self, role: RoleName, host: int, command: Sequence[str], *, grace_s: float) -> list[str]:
        return ["python", *command[1:]]


class _Run:
    """One run's manifests."""

    def __init__(self, config: Config, paths: RunPaths) -> None:
        port = config.serving.port or SERVING_PORT
        self._config = config.model_copy(update={"serving": config.serving.model_copy(update={"port": port})})
        self._paths = paths
        self._roles = config.launch.roles()
        self._name = name_of(config)
        self._processes = {process.name: process for process in planned(config, paths, place=Pods())}

    def config_map(self) -> Manifest:
        settings = in_directory(self._config, self._paths.directory).model_dump(mode="json", exclude_none=True)
        return self._manifest("v1", "ConfigMap", self._name, data={"config.toml": tomli_w.dumps(settings)})

    def claims(self) -> list[Manifest]:
        """One for each folder that all hosts see."""
        spec = {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": f"{self._config.launch.storage_gib}Gi"}},
        }
        return [
            self._manifest("v1", "PersistentVolumeClaim", f"{self._name}-{number}", spec=spec)
            for number in range(len(self._config.launch.shared))
        ]

    def job_set(self) -> Manifest:
        """Supervised start, learner and conversion, each after the one before."""
        hosts = hosts_of(self._config, "learner")
        jobs = []
        if (warm_start := self._processes.get("warm_start")) is not None:
            together = len(warm_start.commands)
            command = [*_on_hosts(warm_start, self._name, "warm-start", together), "--warm-start"]
            jobs.append(self._job("warm-start", command, after=None, hosts=together))
        after = "warm-start" if jobs else None
        learner = _on_hosts(self._processes["learner"], self._name, "learner", hosts)
        jobs.append(self._job("learner", learner, after=after, hosts=hosts))
        jobs.append(self._job("convert", self._command(self._processes["convert"]), after="learner", computes=False))
        spec = {
            "failurePolicy": {"maxRestarts": self._config.launch.max_requeues},
            "network": {"enableDNSHostnames": True, "subdomain": self._name},
            "replicatedJobs": jobs,
        }
        return self._manifest("jobset.x-k8s.io/v1alpha2", "JobSet", self._name, spec=spec)

    def workers(self) -> Manifest:
        command = [*self._command(self._processes_of("rollout")[0]), "--name", "$(POD_NAME)"]
        return self._deployment("rollout", self._container("rollout", command))

    def fleet(self) -> Manifest:
        """Its readiness is that of vLLM's first server; a server that hangs is restarted by the fleet itself.

        A replica of several hosts is a group of a LeaderWorkerSet, whose first pod leads.
        """
        serving = self._config.serving
        health = {"httpGet": {"path": "/health", "port": serving.port}}
        told = ["--name", "$(POD_NAME)", "--set", "serving.host=$(POD_IP)", "--set", f"serving.port={serving.port}"]
        command = [*_module(self._processes_of("fleet")[0]), "--config", f"{CONFIG_FOLDER}/config.toml", *told]
        period_s = 10
        container = self._container("fleet", command) | {
            "ports": [{"name": f"http-{n}", "containerPort": serving.port + n} for n in range(serving.replicas)],
            "startupProbe": health
            | {"periodSeconds": period_s, "failureThreshold": math.ceil(serving.start_timeout_s / period_s) + 1},
            "readinessProbe": health | {"periodSeconds": 5, "failureThreshold": serving.suspect_after},
        }
        grace_s = serving.drain_timeout_s + 40
        if serving.hosts_per_replica == 1:
            return self._deployment("fleet", container, grace_s=grace_s)
        return self._groups(container, grace_s)

    def _groups(self, leader: Manifest, grace_s: float) -> Manifest:
        """A pod that ends is started again alone: what runs in the others waits for it, or is started anew."""
        name = f"{self._name}-fleet"
        told = ["--name", f"{name}-$(WEIR_GROUP)", "--further-host", "$(WEIR_HOST)", "--set", "serving.host=$(POD_IP)"]
        module = _module(self._processes_of("fleet")[0])
        worker = self._container("fleet", [*module, "--config", f"{CONFIG_FOLDER}/config.toml", *told])
        for variable, label in (("WEIR_GROUP", "group-index"), ("WEIR_HOST", "worker-index")):
            field = {"fieldRef": {"fieldPath": f"metadata.labels['{_OF_GROUP}/{label}']"}}
            worker["env"].append({"name": variable, "valueFrom": field})
        spec = {
            "replicas": fleets_of(self._config),
            "leaderWorkerTemplate": {
                "size": self._config.serving.hosts_per_replica,
                "restartPolicy": "None",
                "leaderTemplate": self._pod("fleet", leader, grace_s=grace_s, restart="Always"),
                "workerTemplate": self._pod("fleet", worker, grace_s=grace_s, restart="Always"),
            },
        }
        return self._manifest(f"{_GROUPS}/v1", "LeaderWorkerSet", name, spec=spec)

    @property
    def own_roles(self) -> tuple[RoleName, ...]:
        """Roles whose program the run's user gives."""
        return tuple(role for role in _OWN_ROLES if role in self._roles)

    def own_programs(self, role: RoleName) -> list[Manifest]:
        """A pod for each number, which keeps its name and a volume of its own, and a Service that names them."""
        name, labels = f"{self._name}-{role}", self._labels(role)
        container = with_number_and_volume(self._container(role, own_command(self._roles[role].command)))
        pod = self._pod(role, container, grace_s=60.0, restart="Always")
        hosts, storage_gib = hosts_of(self._config, role), self._config.launch.storage_gib
        spec = stateful_set(name, labels, pod, hosts=hosts, storage_gib=storage_gib)
        named = {"clusterIP": "None", "selector": labels, "publishNotReadyAddresses": True}
        return [
            self._manifest("apps/v1", "StatefulSet", name, spec=spec),
            self._manifest("v1", "Service", name, spec=named),
        ]

    def fleet_service(self) -> Manifest:
        """Names the servers for what scrapes them; workers find them by the registry.

        A LeaderWorkerSet makes a Service of its own name, for the names of its pods: this one has another.
        """
        serving = self._config.serving
        ports = [{"name": f"http-{n}", "port": serving.port + n} for n in range(serving.replicas)]
        leads = {f"{_OF_GROUP}/worker-index": "0"} if serving.hosts_per_replica > 1 else {}
        spec = {"clusterIP": "None", "selector": self._labels("fleet") | leads, "ports": ports}
        return self._manifest("v1", "Service", f"{self._name}-servers", spec=spec)

    def budgets(self) -> list[Manifest]:
        """None for the learner: it saves when it is evicted, and one that may never be would block every drain."""
        return [
            self._manifest(
                "policy/v1",
                "PodDisruptionBudget",
                f"{self._name}-{role}",
                spec={"maxUnavailable": 1, "selector": {"matchLabels": self._labels(role)}},
            )
            for role in ("fleet", "rollout", *self.own_roles)
        ]

    def policies(self) -> list[Manifest]:
        """Only rollout workers and a serving role reach the servers; learners reach learners; nothing reaches workers.

        A database is reached by the run's other roles. Who may reach a serving role is its user's to say.
        """
        serving = self._config.serving
        ports = [{"protocol": "TCP", "port": serving.port + n} for n in range(serving.replicas)]
        among = [{"from": [self._from("fleet")]}] if serving.hosts_per_replica > 1 else []
        clients = [self._from(role) for role in ("rollout", "serving") if role == "rollout" or role in self.own_roles]
        policies = [
            self._policy("fleet", [{"from": clients, "ports": ports}, *among]),
            self._policy("learner", [{"from": [self._from("learner")]}]),
            self._policy("rollout", []),
        ]
        if "database" in self.own_roles:
            among_run = [self._from(role) for role in ("learner", "rollout", "fleet", *self.own_roles)]
            policies.append(self._policy("database", [{"from": among_run}]))
        return policies

    def _policy(self, role: str, ingress: list[Manifest]) -> Manifest:
        spec = {"podSelector": {"matchLabels": self._labels(role)}, "policyTypes": ["Ingress"], "ingress": ingress}
        return self._manifest("networking.k8s.io/v1", "NetworkPolicy", f"{self._name}-{role}", spec=spec)

    def _from(self, role: str) -> Manifest:
        return {"podSelector": {"matchLabels": self._labels(role)}}

    def _job(
        self, name: str, command: list[str], *, after: str | None, hosts: int = 1, computes: bool = True
    ) -> Manifest:
        """A job of the JobSet; `computes` tells whether it takes the learner's devices."""
        container = self._container("learner", command, computes=computes)
        if name == "learner" or hosts > 1:
            container["ports"] = [{"name": "hosts", "containerPort": COORDINATOR_PORT}]
            secret = {"name": f"{self._name}-secrets", "key": "WEIR_HOSTS_SECRET", "optional": True}
            container["env"].append({"name": "WEIR_HOSTS_SECRET", "valueFrom": {"secretKeyRef": secret}})
        grace_s = self._config.launch.stop_ahead_s
        job = {
            "spec": {
                "parallelism": hosts,
                "completions": hosts,
                "completionMode": "Indexed",
                "backoffLimit": 0,
                "template": self._pod("learner", container, grace_s=grace_s, restart="Never", computes=computes),
            }
        }
        depends = {"dependsOn": [{"name": after, "status": "Complete"}]} if after else {}
        return {"name": name, "replicas": 1, **depends, "template": job}

    def _deployment(self, role: RoleName, container: Manifest, *, grace_s: float = 60.0) -> Manifest:
        spec = {
            "replicas": hosts_of(self._config, role),
            "selector": {"matchLabels": self._labels(role)},
            "template": self._pod(role, container, grace_s=grace_s, restart="Always"),
        }
        return self._manifest("apps/v1", "Deployment", f"{self._name}-{role}", spec=spec)

    def _pod(
        self, role: RoleName, container: Manifest, *, grace_s: float, restart: str, computes: bool = True
    ) -> Manifest:
        settings = self._roles[role]
        volumes: list[Manifest] = [{"name": "config", "configMap": {"name": self._name}}]
        volumes.append({"name": _MEMORY, "emptyDir": {"medium": "Memory"}})
        for number in range(len(self._config.launch.shared)):
            claim = {"claimName": f"{self._name}-{number}"}
            volumes.append({"name": f"shared-{number}", "persistentVolumeClaim": claim})
        return {
            "metadata": {"labels": self._labels(role)},
            "spec": {
                "restartPolicy": restart,
                "terminationGracePeriodSeconds": math.ceil(grace_s),
                "automountServiceAccountToken": False,
                "securityContext": {"runAsUser": _USER, "runAsNonRoot": True, "fsGroup": _USER},
                **(_node_selector(settings) if computes else {}),
                "containers": [container],
                "volumes": volumes,
            },
        }

    def _container(self, role: RoleName, command: list[str], *, computes: bool = True) -> Manifest:
        settings = self._roles[role]
        mounts = [{"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}]
        mounts.append({"name": _MEMORY, "mountPath": "/dev/shm"})
        for number, folder in enumerate(self._config.launch.shared):
            mounts.append({"name": f"shared-{number}", "mountPath": folder})
        wanted: Manifest = {"cpu": settings.cpus, "memory": f"{settings.memory_gib}Gi"}
        if settings.devices and computes:
            wanted[_LIMITS[settings.device]] = settings.devices
        return {
            "name": role,
            "image": settings.image,
            "command": command,
            "env": [*_own_facts(), *(self._variable(name, value) for name, value in settings.variables.items())],
            "resources": {"requests": wanted, "limits": dict(wanted)},
            "volumeMounts": mounts,
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }

    def _variable(self, name: str, value: str) -> Manifest:
        """A reference is a key of the run's Secret, which its user makes."""
        if not is_reference(value):
            return {"name": name, "value": value}
        secret = {"name": f"{self._name}-secrets", "key": value.removeprefix(_ENV)}
        return {"name": name, "valueFrom": {"secretKeyRef": secret}}

    def _command(self, process: Planned) -> list[str]:
        """Its command, with the configuration from where pods have it."""
        place = str(self._paths.config)
        return [f"{CONFIG_FOLDER}/config.toml" if part == place else part for part in process.commands[0]]

    def _processes_of(self, role: RoleName) -> list[Planned]:
        return [process for process in self._processes.values() if process.role == role]

    def _labels(self, role: str) -> dict[str, str]:
        return {"app.kubernetes.io/name": "weir", "app.kubernetes.io/instance": self._name, "weir/role": role}

    def _manifest(self, version: str, kind: str, name: str, **fields: Any) -> Manifest:
        labels = {"app.kubernetes.io/name": "weir", "app.kubernetes.io/instance": self._name}
        return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels}, **fields}


def name_of(config: Config) -> str:
    """The run's name as Kubernetes takes it: at most 40 small letters, digits and dashes."""
    plain = re.sub(r"[^a-z0-9]+", "-", f"weir-{config.run.name}".lower())
    return plain[:40].strip("-")


def _on_hosts(process: Planned, run: str, job: str, hosts: int) -> list[str]:
    """The command of each pod of a job of the learner; which host a pod is, it knows by the job's index."""
    first = f"{run}-{job}-0-0.{run}"
    meeting = [] if hosts == 1 else ["--set", f"learner.hosts.coordinator={first}:{COORDINATOR_PORT}"]
    return [*_module(process), "--config", f"{CONFIG_FOLDER}/config.toml", *meeting]


def _module(process: Planned) -> list[str]:
    """Python and the module of a process, without its arguments."""
    return process.commands[0][:4]


def _own_facts() -> list[Manifest]:
    """What a pod knows of itself."""
    fields = {"POD_NAME": "metadata.name", "POD_IP": "status.podIP", "WEIR_ADDRESS": "status.podIP"}
    return [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]


def _node_selector(settings: RoleSettings) -> Manifest:
    if not (settings.devices and settings.device_type):
        return {}
    selector = {_NODES[settings.device]: settings.device_type}
    if settings.topology:
        selector["cloud.google.com/gke-tpu-topology"] = settings.topology
    return {"nodeSelector": selector}
