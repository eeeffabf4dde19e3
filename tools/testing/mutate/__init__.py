"""Small realistic mistakes in Weir's own code, and which tests notice them."""

__all__ = ()
