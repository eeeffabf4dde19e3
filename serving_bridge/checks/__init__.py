"""What can be known before anything starts."""

from serving_bridge.checks.database import database_findings
from serving_bridge.checks.findings import Check, Finding, Result, run_checks
from serving_bridge.checks.prompt_survey import golden_prompts
from serving_bridge.checks.storage import storage_findings

__all__ = ["Check", "Finding", "Result", "database_findings", "golden_prompts", "run_checks", "storage_findings"]
