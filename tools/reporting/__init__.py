"""What runs measured, as figures, charts, pages and live views.

`page` needs Jinja and Matplotlib, which take half a second to import: whoever writes pages imports that file.
"""

from tools.reporting.figures import LAST_PHASE, STOPPED_PHASE, idle_shares
from tools.reporting.live_view import LiveView
from tools.reporting.terminal import SafeConsole, prepare_streams

__all__ = ["LAST_PHASE", "STOPPED_PHASE", "LiveView", "SafeConsole", "idle_shares", "prepare_streams"]
