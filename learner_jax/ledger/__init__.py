"""What the learner trained on, published and saved, and what may be forgotten when; free of JAX and I/O."""

from learner_jax.ledger.ledger import Ledger, LedgerError

__all__ = ["Ledger", "LedgerError"]
