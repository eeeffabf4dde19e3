"""The page of a registry's rollouts: versions, lineage, traffic, verdicts, and buttons that ask first."""

from tools.rollout_page.app import build_rollout_app
from tools.rollout_page.drift import Drift
from tools.rollout_page.shown import page_data

__all__ = ["Drift", "build_rollout_app", "page_data"]
