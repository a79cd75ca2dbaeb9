"""A chat endpoint on this machine that answers, or misbehaves, as a test says."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-Test0123456789"


@dataclass(frozen=True)
class Request:
    """What came, in order from 0."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def asked(self) -> str:
        """The user's words."""
        return self.body["messages"][-1]["content"]


@dataclass(frozen=True)
class Reply:
    """A status, a body and headers. promised: Content-Length, where that is not the body's."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    promised: int | None = None


def completion(text: Any, finish_reason: Any = "stop", prompt: int = 10, answer: int = 20, **message: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    return said({"object": "chat.completion", "model": "served-model", "choices": [choice], "usage": usage})


def said(body: Any, status: int = 200, **headers: str) -> Reply:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Reply(status, json.dumps(body).encode(), named)


def refusal(status: int, message: str = "no", **headers: str) -> Reply:
    return said({"error": {"message": message, "type": "refused"}}, status, **headers)


class Served:
    """The endpoint: its address and what it was asked.

    hang: until it is set, requests answered by `HANG` wait.
    """

    def __init__(self, behave: Callable[[Request], Reply]) -> None:
        self.behave, self.hang = behave, threading.Event()
        self.lock = threading.Lock()
        self.requests: list[Request] = []
        self.url = ""

    def taken(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Request:
        with self.lock:
            request = Request(len(self.requests), path, headers, body)
            self.requests.append(request)
        return request


HANG, RESET, DRIP = Reply(-1), Reply(-2), Reply(-3)


@contextlib.contextmanager
def serving(
    behave: Callable[[Request], Reply], got: Callable[[Request], Reply] = lambda request: refusal(404)
) -> Iterator[Served]:
    """behave: to what is posted; got: to what is got."""
    served = Served(behave)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            request = served.taken(self.path, dict(self.headers), json.loads(self.rfile.read(size)))
            reply = served.behave(request)
            with contextlib.suppress(OSError):  # the client has gone
                self.answer(reply)

        def answer(self, reply: Reply) -> None:
            if reply is HANG:
                served.hang.wait(60)
                self.close_connection = True
                return
            if reply is RESET:  # instead of an end, as a server that dies gives
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return
            if reply is DRIP:
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                while not served.hang.wait(0.02):
                    self.wfile.write(b" ")
                return
            self.send_response(reply.status)
            length = len(reply.body) if reply.promised is None else reply.promised
            for name, value in (*reply.headers, ("Content-Length", str(length))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        def do_GET(self) -> None:
            request = served.taken(self.path, dict(self.headers), {})
            with contextlib.suppress(OSError):
                self.answer(got(request))

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.hang.set()
        server.shutdown()
        server.server_close()
        thread.join()
