"""Benchmark of the queue on SQLite and PostgreSQL, against persist-queue and the bare disk."""

from tools.bench.queue.postgres_server import NoServerError, PostgresServer, running_server

__all__ = ["NoServerError", "PostgresServer", "running_server"]
