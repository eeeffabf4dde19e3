"""Messages to addresses of others: kept in the database, signed, tried again, and given up in the end."""

from serving_bridge.notices.messenger import (
    DEADLINE_S,
    DELIVERY_HEADER,
    SIGNATURE_HEADER,
    TIME_HEADER,
    Messenger,
    signature,
)
from serving_bridge.notices.tables import MAX_WAITING, forget_notices, notice_tables, put_notices

__all__ = [
    "DEADLINE_S",
    "DELIVERY_HEADER",
    "MAX_WAITING",
    "SIGNATURE_HEADER",
    "TIME_HEADER",
    "Messenger",
    "forget_notices",
    "notice_tables",
    "put_notices",
    "signature",
]
