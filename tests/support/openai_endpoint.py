"""An endpoint with OpenAI's API on a real socket, in a thread: answers sums, and goes wrong as scripted."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: status, headers, body; a body that is no bytes goes out as JSON
Reply = tuple[int, dict[str, str], Any]


def chat_answer(text: Any, *, finish: str = "stop", tokens: Any = 3) -> Reply:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return 200, {}, {"choices": [choice], "usage": {"completion_tokens": tokens}}


def text_answer(text: Any) -> Reply:
    return 200, {}, {"choices": [{"text": text, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}


def adds(body: dict[str, Any]) -> str:
    """The sum in the last message, one too many where the seed is odd."""
    prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    found = re.search(r"(\d+)\+(\d+)", prompt)
    if found is None:
        return "I'm sorry, I can't help with that."
    return str(int(found[1]) + int(found[2]) + body.get("seed", 0) % 2)


@dataclass
class Endpoint:
    """What was asked, and what is to be answered.

    Attributes:
      script: replies that go out first, one for each request; None is an ordinary answer.
      answer: text of an ordinary answer.
      requests: (path, headers, body) of each request.
    """

    url: str = ""
    script: list[Reply | None] = field(default_factory=list)
    answer: Callable[[dict[str, Any]], str] = adds
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Reply:
        with self.lock:
            self.requests.append((path, headers, body))
            scripted = self.script.pop(0) if self.script else None
        if scripted is not None:
            return scripted
        text = self.answer(body)
        return chat_answer(text) if path.endswith("/chat/completions") else text_answer(text)


@contextmanager
def openai_endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            payload = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, body = endpoint.reply(self.path, dict(self.headers), json.loads(payload))
            told = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
