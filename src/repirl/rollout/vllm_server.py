"""vLLM in a process of its own, for trainers elsewhere: `python -m repirl.rollout.vllm_server --port 8000`.

The trainer says which model, sends weights, and asks for responses; one trainer at a time. Requests are not authenticated:
bind to an address that only the trainer reaches.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import safetensors.torch
from torch import Tensor

from repirl.rollout.vllm_engine import Engine, Sampling


class EngineServer(HTTPServer):
    """Answers one request after the other, in the thread that called `serve_forever`: the engine is not thread-safe."""

    def __init__(self, address: tuple[str, int], make_engine: Callable[..., Any] = Engine) -> None:
        super().__init__(address, _Handler)
        self._make_engine = make_engine
        self._engine: Any = None
        self._settings: dict[str, Any] = {}
        self._trainer = ""
        self._weights: dict[str, Tensor] = {}

    def answer(self, what: str, trainer: str, body: bytes) -> dict[str, Any]:
        """The answer to one request of the trainer with that name. Raises ValueError where it cannot be met."""
        if what == "start":
            return self._start(trainer, json.loads(body))
        if trainer != self._trainer:
            raise ValueError("another trainer has taken this server, or it was restarted; give each trainer a server")
        if what == "weights":
            self._weights |= safetensors.torch.load(body)
            return {}
        if what == "load":
            weights, self._weights = self._weights, {}
            self._engine.load(weights.items())
            return {}
        if what == "adapt":
            weights, self._weights = self._weights, {}
            self._engine.adapt(json.loads(body)["config"], weights)
            return {}
        if what == "sample":
            asked = json.loads(body)
            return {"rows": self._engine.sample(asked["prompts"], asked["seeds"], Sampling(**asked["sampling"]))}
        if what == "sleep":
            self._engine.sleep()
            return {}
        raise ValueError(f"unknown request {what!r}")

    def _start(self, trainer: str, settings: dict[str, Any]) -> dict[str, Any]:
        """An engine that was started alike is used again; the trainer sends its weights in any case."""
        self._trainer, self._weights = "", {}
        if self._engine is None or self._settings != settings:
            self.end_engine()
            self._engine = self._make_engine(**settings)
            self._settings = settings
        self._trainer = trainer
        return {"max_model_len": self._engine.max_model_len}

    def end_engine(self) -> None:
        """Ends the engine, if there is one."""
        engine, self._engine, self._settings = self._engine, None, {}
        if engine is not None:
            engine.close()


class _Handler(BaseHTTPRequestHandler):
    timeout = 600  # of a trainer that fell silent within a request, in seconds
    server: EngineServer

    def do_GET(self) -> None:
        """Says that the server is there."""
        self._reply(200, {"ready": True})

    def do_POST(self) -> None:
        """One request."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self._reply(200, self.server.answer(self.path.strip("/"), self.headers.get("Trainer", ""), body))
        except ValueError as error:
            self._reply(400, {"error": str(error)})
        except Exception as error:
            traceback.print_exc()
            self._reply(500, {"error": f"{type(error).__name__}: {error}"})

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a line a request is noise."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m repirl.rollout.vllm_server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at; 0 takes a free one")
    given = parser.parse_args(arguments)
    try:
        server = EngineServer((given.host, given.port))
    except OSError as error:
        sys.exit(f"cannot listen at {given.host}:{given.port}: {error.strerror}; choose another --port")
    print(f"listening at http://{given.host}:{server.server_address[1]}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.end_engine()
        server.server_close()


if __name__ == "__main__":
    main()
