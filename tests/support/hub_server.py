"""A stand-in for the Hugging Face hub on a real socket: branches that move, and repositories that are closed."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What the hub holds.

    Attributes:
      commits: commit -> file -> content, of the one repository.
      refs: branch or tag -> commit.
      refuses: (status, X-Error-Code) for all requests, None to answer.
      requests: (method, path, Authorization) of all that came.
    """

    repository: str = "org/tiny"
    url: str = ""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    refuses: tuple[int, str] | None = None
    requests: list[tuple[str, str, str]] = field(default_factory=list)

    def push(self, files: dict[str, bytes], ref: str = "main") -> str:
        """A new commit of a branch; returns its hash."""
        commit = hashlib.sha1(repr((ref, sorted(files.items()))).encode(), usedforsecurity=False).hexdigest()
        self.commits[commit] = files
        self.refs[ref] = commit
        return commit

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.refuses is not None:
            status, code = self.refuses
            return status, {"X-Error-Code": code, "X-Error-Message": "no"}, b"{}"
        known = f"/api/models/{self.repository}/"
        if path.startswith(f"{known}revision/"):
            wanted = path.removeprefix(f"{known}revision/")
            commit = self.refs.get(wanted, wanted)
            if commit not in self.commits:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            files = [{"rfilename": name} for name in self.commits[commit]]
            return self._json({"id": self.repository, "sha": commit, "siblings": files})
        if path.startswith(f"{known}tree/"):
            files_of = self.commits[path.removeprefix(f"{known}tree/")]
            return self._json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}
                    for name, content in files_of.items()
                ]
            )
        if path.startswith(f"/{self.repository}/resolve/"):
            commit, _, name = path.removeprefix(f"/{self.repository}/resolve/").partition("/")
            content = self.commits[commit][name]
            return 200, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": commit}, content
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    @staticmethod
    def _json(tree: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Authorization", "")))
            status, headers, body = hub.answer(path)
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = _serve  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
