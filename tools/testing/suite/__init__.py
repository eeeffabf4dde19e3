"""What the tests cost and what they see, as a page of the documentation."""

__all__ = ()
