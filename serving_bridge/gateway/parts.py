"""What one process of the gateway is made of."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp

from serving_bridge.feedback import FeedbackStore
from serving_bridge.gateway.arms import Arms
from serving_bridge.gateway.callers import Admission, Guards
from serving_bridge.gateway.counts import Counts
from serving_bridge.gateway.observations import Observations
from serving_bridge.gateway.prompts import Prompts
from serving_bridge.gateway.recording import Recorders
from serving_bridge.gateway.replicas import Replicas
from serving_bridge.settings import GatewaySettings
from serving_bridge.text import Tokenizer


@dataclass(frozen=True)
class Parts:
    """What requests are answered with.

    Attributes:
      wants_logprobs: whether log-probs are asked for where the request does not.
    """

    settings: GatewaySettings
    tokenizer: Tokenizer
    prompts: Prompts
    replicas: Replicas
    session: aiohttp.ClientSession
    admission: Admission
    guards: Guards
    arms: Arms
    counts: Counts
    observations: Observations
    recorders: Recorders
    wants_logprobs: bool = False
    feedback: FeedbackStore | None = None
