"""Benchmark of the gateway: what it adds to time and processor, beside direct access and LiteLLM's proxy."""

from tools.bench.gateway.load import Figures, drive
from tools.bench.gateway.sides import Side, started

__all__ = ["Figures", "Side", "drive", "started"]
