"""An OpenAI-compatible endpoint on this machine for tests: it counts requests, and answers by a function of theirs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lifecycle.rewards.judge.settings import Criterion, JudgeKeys


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the endpoint sends. cut: the connection closes after so many bytes. hang_s: it waits first."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    hang_s: float = 0.0


def said(text: str | None, **usage: Any) -> Answer:
    """An answer with one choice."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    used = {"prompt_tokens": 100, "completion_tokens": 10, **usage}
    return Answer(body=json.dumps({"choices": [choice], "usage": used}).encode())


class Served:
    """A running endpoint. bodies, headers: of the requests so far, in the order that they came."""

    def __init__(self, answer: Callable[[Mapping[str, Any], int], Answer]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.over = threading.Event()
        self._lock, served = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:  # noqa: N802
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with served._lock:
                    served.bodies.append(body)
                    served.headers.append({**dict(self.headers), "path": self.path})
                    number = len(served.bodies)
                    served.at_once += 1
                    served.most_at_once = max(served.most_at_once, served.at_once)
                sent = answer(body, number)
                served.over.wait(sent.hang_s)
                with served._lock:
                    served.at_once -= 1
                self.send_response(sent.status)
                for name, value in {"Content-Length": str(len(sent.body)), **sent.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    self.wfile.write(sent.body[: sent.cut])
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                if sent.cut is not None:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def questions(self) -> list[str]:
        """The last message of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    def close(self) -> None:
        """End it."""
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def serving(answer: Callable[[Mapping[str, Any], int], Answer]) -> Iterator[Served]:
    """An endpoint that answers by `answer(body, number of the request)`."""
    served = Served(answer)
    try:
        yield served
    finally:
        served.close()


KEYS = JudgeKeys(
    url="http://127.0.0.1:9/v1",
    model="tester",
    key_from=None,
    version="",
    temperature=0.0,
    max_new_tokens=64,
    in_flight=4,
    timeout_s=5.0,
    attempts=3,
    longest_wait_s=0.02,
    price_in=0.0,
    price_out=0.0,
    max_cost=None,
    system="",
    template="{question}\n{prompt}\n{completion}\nScore: {low} to {high}",
    pair_template="{question}\n{prompt}\n{a}\n{b}",
    pair_question="Which is better?",
    criteria={"good": Criterion(question="Is it good?", low=0, high=10, weight=1)},
    pairs_per_prompt=6,
)


def keys(**changed: Any) -> JudgeKeys:
    """Settings for tests, with no wait worth telling."""
    return replace(KEYS, **changed)
