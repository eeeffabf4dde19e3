"""Benchmark of a gateway's admission: CPU time of a request from its key to its bill."""

__all__ = ()
