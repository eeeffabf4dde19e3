"""The weight-transfer backend inside a vLLM worker: applies what was staged, all of it in `update_weights`.

A failed `update_weights` ends vLLM's update session and a failed `finish_weight_update` doesn't, hence the rule.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.logger import init_logger

from learner_jax.contracts import hf_shapes, parse_model_config
from serving_bridge.access import MAX_VERSION, Lease
from serving_bridge.vllm_plugin import ANY_ORDER, KEPT_VERSIONS, MODEL_FAMILY, STORE_ROOT
from serving_bridge.vllm_plugin.live import LiveWeights, TornError, tensor_of
from serving_bridge.vllm_plugin.stage import Applied, ModelTensors, Staged, StageError, Stager
from serving_bridge.vllm_plugin.stages import make_room_between_stages
from serving_bridge.weights import ShelfOptions, WeightStore

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(f"vllm.{__name__}")


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand: the store is a path that every host sees."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """Which staged version to apply, and in whose round."""

    version: int
    content_sha256: str
    round_id: str


class WeirEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Brings the model to a staged version in place: element by element for an update, else by its `load_weights`.

    Attributes:
      applied: what was loaded last; None until the first, and once a load broke off halfway.
      intact: False once a load broke off halfway: the weights are then of no version.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        if device.type == "cpu" and vllm_config.parallel_config.pipeline_parallel_size > 1:
            from vllm.v1.worker.gpu_model_runner import (
                GPUModelRunner,
            )  # which a worker has imported, and tests have not

            make_room_between_stages(GPUModelRunner)  # that of the CPU inherits from it
        empty = [name for name, parameter in model.named_parameters() if parameter.numel() == 0]
        if empty:
            raise RuntimeError(
                f"{len(empty)} parameters, e.g. {empty[0]}, are empty: their weights live in packed copies that can't "
                f"be updated in place; expected the weir plugin to have turned packing off, or another backend"
            )
        model_config = parse_model_config(
            self.model_config.hf_config.to_dict(),
            origin=f"model {self.model_config.model}",
            family=os.environ.get(MODEL_FAMILY, ""),
        )
        dtype = str(self.model_config.dtype).removeprefix("torch.")
        self.live = LiveWeights(model)
        self.stager = Stager(
            ModelTensors(hf_shapes(model_config), dtype),
            self.live,
            any_order=os.environ.get(ANY_ORDER) == "1",
            kept_versions=int(os.environ.get(KEPT_VERSIONS) or 0),
        )
        self.lease = Lease()
        root = os.environ.get(STORE_ROOT, "")
        self.store = WeightStore(root, run="", options=ShelfOptions.of_environment(os.environ)) if root else None
        self.applied: Applied | None = None
        self.intact = True

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Nothing to prepare: staging has its own call and the pause should stay short."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Applies the staged version. The base class's method would synchronise an accelerator that may not exist."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Applies the staged version in one call; a version that is applied already is left as it is.

        Raises:
          LeaseError, StageError: it is another round's turn, or that version is not staged; nothing was touched.
          RuntimeError: an update could not be written and was undone, or (then `intact` is False until a later full
            load succeeds) the load broke off.
        """
        self.lease.check(update_info.round_id)
        if self.intact and self.applied == Applied(update_info.version, update_info.content_sha256):
            return
        staged = self.stager.get(update_info.version, update_info.content_sha256)
        started = time.perf_counter()
        before, self.applied = self.applied, None
        if staged.patches is not None:
            try:
                self.live.write(staged.patches)
            except TornError:
                self.intact = False
                raise
            except RuntimeError:
                self.applied = before
                raise
        else:
            self._load(staged)
        self.applied, self.intact = Applied(staged.version, staged.content_sha256), True
        self.stager.finish(staged)
        logger.info("applied version %d in %.1f ms", staged.version, 1e3 * (time.perf_counter() - started))

    def _load(self, staged: Staged) -> None:
        self.intact = False
        tensors = {name: tensor_of(tensor) for name, tensor in staged.tensors.items()}
        if staged.is_update:
            self.live.load_some(tensors)
            return
        loaded = self.live.load(tensors)
        missed = {name for name, _ in self.model.named_parameters()} - loaded
        if missed:
            raise RuntimeError(
                f"version {staged.version} left {len(missed)} parameters as they were, e.g. {sorted(missed)[0]}; "
                f"the weights are now of no version"
            )

    def finish_weight_update(self) -> None:
        """Nothing is left to do; vLLM sets the version that answers carry."""

    def shutdown(self) -> None:
        self.stager.clear()


class WorkerExtension:
    """Methods that vLLM adds to its worker class, called through /collective_rpc while the server serves."""

    weight_transfer_engine: WeirEngine | None

    def weir_stage(
        self, version: int, content_sha256: str, round_id: str, lease_s: float, sealed: str = ""
    ) -> dict[str, Any]:
        """Takes the lease and starts staging a version of the server's store; returns `weir_status` at once.

        Args:
          sealed: as of `manifests_to_load`.

        Raises:
          LeaseError: another round holds the replica.
          StageError: a version is still being read; or the server was started without a store.
        """
        engine = self._weir_engine()
        if engine.store is None:
            raise StageError(f"this server was started without {STORE_ROOT}, so it takes no versions")
        if type(version) is not int or not 0 <= version <= MAX_VERSION:
            raise StageError(f"version {version!r}, expected a number up to {MAX_VERSION}")
        engine.lease.take(round_id, lease_s)
        try:
            applied = engine.applied if engine.intact else None
            engine.stager.begin(engine.store, version, content_sha256, applied, sealed)
        except StageError:
            engine.lease.release(round_id)
            raise
        return self.weir_status(round_id)

    def weir_status(self, round_id: str) -> dict[str, Any]:
        """Staging state and what the worker's weights are; keeps the lease of the round that asks."""
        engine = self._weir_engine()
        engine.lease.renew(round_id)
        state, version, error, damaged = engine.stager.status()
        return {
            "state": state,
            "staged": version,
            "error": error,
            "damaged": damaged,
            "applied": engine.applied.version if engine.applied is not None else None,
            "intact": engine.intact,
        }

    def weir_release(self, round_id: str) -> dict[str, Any]:
        """Ends a round: gives its lease back."""
        self._weir_engine().lease.release(round_id)
        return self.weir_status(round_id)

    def _weir_engine(self) -> WeirEngine:
        if self.weight_transfer_engine is None:
            raise RuntimeError('no weight-transfer engine; start vLLM with --weight-transfer-config {"backend":"weir"}')
        return self.weight_transfer_engine
