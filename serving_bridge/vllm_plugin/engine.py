"""The weight-transfer backend inside a vLLM worker: applies what was staged, all of it in `update_weights`.

A failed `update_weights` ends vLLM's update session and a failed `finish_weight_update` doesn't, hence the rule.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.logger import init_logger

from learner_jax.hf_names import hf_shapes, parse_model_config
from serving_bridge.vllm_plugin.stage import ModelTensors, Stager

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(f"vllm.{__name__}")


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand: the store is a path that every host sees."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """Which staged version to apply."""

    version: int
    content_sha256: str


class WeirEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads a staged version in place through the model's own `load_weights`.

    Attributes:
      applied: version loaded last; None until the first.
      intact: False once a load broke off halfway: the weights are then of no version.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        empty = [name for name, parameter in model.named_parameters() if parameter.numel() == 0]
        if empty:
            raise RuntimeError(
                f"{len(empty)} parameters, e.g. {empty[0]}, are empty: their weights live in packed copies that can't "
                f"be updated in place; expected the weir plugin to have turned packing off, or another backend"
            )
        model_config = parse_model_config(
            self.model_config.hf_config.to_dict(), origin=f"model {self.model_config.model}"
        )
        dtype = str(self.model_config.dtype).removeprefix("torch.")
        self.stager = Stager(ModelTensors(hf_shapes(model_config), dtype))
        self.applied: int | None = None
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
        """Loads the staged tensors in one call.

        Raises:
          StageError: that version is not staged; nothing was touched.
          RuntimeError: the load broke off; `intact` is False until a later full load succeeds.
        """
        staged = self.stager.get(update_info.version, update_info.content_sha256)
        started = time.perf_counter()
        self.intact = False
        with torch.no_grad():
            loaded = self.model.load_weights(iter(staged.tensors.items()))
        missed = {name for name, _ in self.model.named_parameters()} - set(loaded or ())
        if missed:
            raise RuntimeError(
                f"version {staged.version} left {len(missed)} parameters as they were, e.g. {sorted(missed)[0]}; "
                f"the weights are now of no version"
            )
        self.applied, self.intact = staged.version, True
        self.stager.clear()
        logger.info("applied version %d in %.1f ms", staged.version, 1e3 * (time.perf_counter() - started))

    def finish_weight_update(self) -> None:
        """Nothing is left to do; vLLM sets the version that answers carry."""

    def shutdown(self) -> None:
        self.stager.clear()


class WorkerExtension:
    """Methods that vLLM adds to its worker class, called through /collective_rpc while the server serves."""

    weight_transfer_engine: WeirEngine | None

    def weir_stage(self, folder: str, content_sha256: str) -> dict[str, Any]:
        """Starts staging a version's folder; returns `weir_status` at once."""
        engine = self._weir_engine()
        engine.stager.begin(Path(folder), content_sha256, engine.applied)
        return self.weir_status()

    def weir_status(self) -> dict[str, Any]:
        """Staging state and what the worker's weights are."""
        engine = self._weir_engine()
        state, version, error = engine.stager.status()
        return {
            "state": state,
            "staged": version,
            "error": error,
            "applied": engine.applied,
            "intact": engine.intact,
        }

    def _weir_engine(self) -> WeirEngine:
        if self.weight_transfer_engine is None:
            raise RuntimeError('no weight-transfer engine; start vLLM with --weight-transfer-config {"backend":"weir"}')
        return self.weight_transfer_engine
