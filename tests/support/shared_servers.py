"""Files of tests that share what is expensive to start: those of a group run in one worker of pytest-xdist."""

from __future__ import annotations

#: They share real vLLM servers, file after file in this order: the first needs a server that was just started, and the
#: last ends it.
FILES = (
    "tests/serving_bridge/fleet/test_weight_round.py",
    "tests/serving_bridge/fleet/test_weight_round_controllers.py",
    "tests/serving_bridge/fleet/test_weight_round_proof.py",
    "tests/serving_bridge/access/test_vllm_attacks.py",
    "tests/serving_bridge/rollout/test_on_vllm.py",
    "tests/serving_bridge/rollout/test_tools_on_vllm.py",
    "tests/serving_bridge/rollout/test_verifiers_on_vllm.py",
    "tests/serving_bridge/gateway/test_on_vllm.py",
    "tests/serving_bridge/vllm_plugin/test_sharing_on_vllm.py",
    "tests/serving_bridge/vllm_plugin/test_cache_memory.py",
    "tests/serving_bridge/fleet/test_weight_round_servers.py",
)

#: They load vLLM into pytest's own process, which takes seconds.
LOADING_VLLM = (
    "tests/serving_bridge/vllm_plugin/test_live_weights.py",
    "tests/serving_bridge/vllm_plugin/test_sampling.py",
    "tests/serving_bridge/vllm_plugin/test_swap.py",
    "tests/serving_bridge/vllm_plugin/test_scheduler.py",
    "tests/serving_bridge/vllm_plugin/test_held_outputs.py",
    "tests/serving_bridge/vllm_plugin/test_sharing.py",
    "tests/serving_bridge/vllm_plugin/test_cpu_kernels.py",
    "tests/serving_bridge/vllm_plugin/test_next_slots.py",
    "tests/serving_bridge/text/test_answer_ends.py",
    "tests/system/test_sync_in_process.py",
)

#: Their programs are forked from one that has imported JAX, and compile the same.
FORKING = (
    "tests/learner_jax/hosts/test_processes.py",
    "tests/learner_jax/hosts/test_fine_tuning.py",
    "tests/learner_jax/loop/test_saving.py",
    "tests/learner_jax/hosts/test_watch.py",
    "tests/learner_jax/hosts/test_shared_folders.py",
    "tests/learner_jax/hosts/test_shares.py",
    "tests/learner_jax/hosts/test_host_ends.py",
    "tests/learner_jax/checkpoints/test_commits.py",
    "tests/learner_jax/conversion/test_convert_work.py",
    "tests/test_forked_python.py",
)

#: They share a server of object storage.
ON_S3 = (
    "tests/learner_jax/loop/test_copies.py",
    "tests/serving_bridge/queue/test_blob_objects.py",
    "tests/serving_bridge/registry/test_storage.py",
    "tests/serving_bridge/storage/test_checkpoint_copies.py",
    "tests/tools/test_convert.py",
    "tests/tools/evaluation/test_sources.py",
    "tests/serving_bridge/weights/test_object_shelf.py",
    "tests/serving_bridge/storage/test_fsspec_objects.py",
    "tests/serving_bridge/vllm_plugin/test_stage_from_storage.py",
    "tests/system/test_object_storage.py",
)

#: They share servers of Google's and Azure's protocols.
ON_CLOUDS = (
    "tests/serving_bridge/storage/test_clouds.py",
    "tests/serving_bridge/storage/test_cloud_stores.py",
)

#: They run an installed Weir, whose wheel is built once.
INSTALLING = (
    "tests/tools/test_extend.py",
    "tests/tools/test_extend_learner.py",
    "tests/tools/test_extend_agent.py",
    "tests/tools/test_new.py",
    "tests/system/test_own_parts.py",
    "tests/system/test_agent_job.py",
    "tests/system/test_verifiers_job.py",
)

_GROUPS = {
    "shared servers": FILES,
    "vLLM in pytest": LOADING_VLLM,
    "forked programs": FORKING,
    "S3": ON_S3,
    "clouds": ON_CLOUDS,
    "installed Weir": INSTALLING,
}


def file_of(nodeid: str) -> str:
    """The path of a test's file, from the repository's root."""
    return nodeid.split("::", 1)[0]


def scope_of(nodeid: str) -> str:
    """Names what must run in one worker: the test's file, or all files of its group."""
    file = file_of(nodeid)
    return next((name for name, files in _GROUPS.items() if file in files), file)
