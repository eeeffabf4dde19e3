"""The live view of runs as a page for browsers: curves, answers, replicas and queue, read only.

`serve` needs Starlette and uvicorn; whoever serves imports that file.
"""

from tools.dashboard.access import Access, read_token
from tools.dashboard.errors import DashboardError

__all__ = ["Access", "DashboardError", "read_token"]
