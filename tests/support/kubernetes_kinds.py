"""What the custom resources of JobSet and LeaderWorkerSet may hold, as facts of their published types.

Names, whether they are required, and their values: JobSet v1alpha2 and LeaderWorkerSet v1, of November 2026. Kubernetes
refuses unknown fields of these kinds only with strict validation, and drops them silently without it.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
_TEXT, _FLAG = {"type": "string"}, {"type": "boolean"}
_ANY: Schema = {"type": "object"}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def _object(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def _list(of: Schema, most: int = 2**31) -> Schema:
    return {"type": "array", "items": of, "maxItems": most}


def _one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def _resource(version: str, kind: str, spec: Schema) -> Schema:
    metadata = {"type": "object", "required": ["name"]}
    kinds: Schema = {"apiVersion": _one_of(version), "kind": _one_of(kind)}
    return _object(("apiVersion", "kind", "metadata", "spec"), **kinds, metadata=metadata, spec=spec)


_ENVIRONMENT = _object(
    ("name",), name=_TEXT, value=_TEXT, valueFrom=_object(fieldRef={"type": "object"}, secretKeyRef={"type": "object"})
)
_CONTAINER = _object(
    ("name", "image"),
    name=_TEXT,
    image=_TEXT,
    command=_list(_TEXT),
    env=_list(_ENVIRONMENT),
    resources=_ANY,
    securityContext=_ANY,
    startupProbe=_ANY,
    readinessProbe=_ANY,
    ports=_list(_object(("containerPort",), name={"type": "string", "maxLength": 15}, containerPort=_COUNT)),
    volumeMounts=_list(_object(("name", "mountPath"), name=_TEXT, mountPath=_TEXT, readOnly=_FLAG)),
)


def _pods(*restarts: str) -> Schema:
    """A template of pods, as far as Weir fills it; Kubernetes' own schemas have all of it."""
    spec = _object(
        ("containers",),
        restartPolicy=_one_of(*restarts),
        terminationGracePeriodSeconds=_COUNT,
        automountServiceAccountToken=_FLAG,
        securityContext={"type": "object"},
        nodeSelector={"type": "object", "additionalProperties": _TEXT},
        containers=_list(_CONTAINER),
        volumes=_list({"type": "object", "required": ["name"]}),
    )
    return _object(("spec",), metadata=_object(labels={"type": "object"}), spec=spec)


_JOB = _object(
    ("template",),
    **dict.fromkeys(("parallelism", "completions", "backoffLimit"), _COUNT),
    completionMode=_one_of("Indexed", "NonIndexed"),
    template=_pods("Never", "OnFailure"),
)
_REPLICATED_JOB = _object(
    ("name", "template"),
    name=_TEXT,
    groupName=_TEXT,
    replicas=_COUNT,
    template=_object(("spec",), metadata={"type": "object"}, spec=_JOB),
    dependsOn=_list(_object(("name", "status"), name=_TEXT, status=_one_of("Ready", "Complete")), most=5),
)
_JOB_RULE = _object(
    ("name", "action"),
    name=_TEXT,
    action=_one_of(
        *("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
        *("RestartJob", "RestartJobAndIgnoreMaxRestarts"),
    ),
    **dict.fromkeys(("onJobFailureReasons", "onJobFailureMessagePatterns", "targetReplicatedJobs"), _list(_TEXT)),
)
JOB_SET = _resource(
    "jobset.x-k8s.io/v1alpha2",
    "JobSet",
    _object(
        replicatedJobs=_list(_REPLICATED_JOB),
        network=_object(enableDNSHostnames=_FLAG, subdomain=_TEXT, publishNotReadyAddresses=_FLAG),
        successPolicy=_object(("operator",), operator=_one_of("All", "Any"), targetReplicatedJobs=_list(_TEXT)),
        failurePolicy=_object(
            maxRestarts=_COUNT,
            restartStrategy=_one_of("Recreate", "BlockingRecreate", "InPlaceRestart"),
            rules=_list(_JOB_RULE),
        ),
        startupPolicy=_object(("startupPolicyOrder",), startupPolicyOrder=_one_of("AnyOrder", "InOrder")),
        suspend=_FLAG,
        coordinator=_object(("replicatedJob",), replicatedJob=_TEXT, jobIndex=_COUNT, podIndex=_COUNT),
        managedBy=_TEXT,
        ttlSecondsAfterFinished=_COUNT,
    ),
)

_SHARE: Schema = {"type": ["integer", "string"]}
LEADER_WORKER_SET = _resource(
    "leaderworkerset.x-k8s.io/v1",
    "LeaderWorkerSet",
    _object(
        ("leaderWorkerTemplate",),
        replicas=_COUNT,
        startupPolicy=_one_of("LeaderCreated", "LeaderReady"),
        networkConfig=_object(("subdomainPolicy",), subdomainPolicy=_one_of("Shared", "UniquePerReplica")),
        rolloutStrategy=_object(
            ("type",),
            type=_one_of("RollingUpdate"),
            rollingUpdateConfiguration=_object(partition=_COUNT, maxUnavailable=_SHARE, maxSurge=_SHARE),
        ),
        leaderWorkerTemplate=_object(
            ("workerTemplate",),
            size={**_COUNT, "minimum": 1},
            # "Default" is the old name of "None".
            restartPolicy=_one_of("Default", "RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"),
            leaderTemplate=_pods("Always"),
            workerTemplate=_pods("Always"),
            subGroupPolicy=_object(subGroupPolicyType=_one_of("LeaderWorker", "LeaderExcluded"), subGroupSize=_COUNT),
        ),
    ),
)
#: Labels that a LeaderWorkerSet gives its pods.
GROUP_LABELS = frozenset(
    f"leaderworkerset.sigs.k8s.io/{name}" for name in ("name", "group-index", "worker-index", "group-key")
)
_KINDS = {"JobSet": JOB_SET, "LeaderWorkerSet": LEADER_WORKER_SET}


def kind_problems(resource: Schema) -> list[str]:
    """What its kind does not take, one line each; empty for a resource that it takes."""
    from jsonschema import Draft202012Validator

    found = Draft202012Validator(_KINDS[resource["kind"]]).iter_errors(resource)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def service_of(resource: Schema) -> str:
    """Name of the headless Service that the kind's controller makes, unless there is one of that name."""
    name: str = resource["metadata"]["name"]
    if resource["kind"] == "JobSet":
        return str(resource["spec"].get("network", {}).get("subdomain", name))
    return name
