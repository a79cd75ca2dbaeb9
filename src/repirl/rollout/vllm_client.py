"""The engine of vllm_engine.py in another process, over HTTP."""

import http.client
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import safetensors.torch
from torch import Tensor

from repirl.rollout.vllm_engine import Sampled, Sampling

BUCKET_BYTES = 2**28
"""Weights are sent in pieces of about this size."""


class RemoteEngine:
    """An engine in the process of a `vllm_server`, which starts it with these arguments; those of `Engine`.

    address: such as http://127.0.0.1:8000. timeout_s: for one answer; None waits for as long as it takes.

    Raises:
        ValueError: the address is none, nothing answers there, or the server refuses what is asked.
        RuntimeError: the server failed; the message holds its error.
    """

    def __init__(
        self,
        address: str,
        config: dict[str, Any],
        *,
        dtype: str,
        sleeps: bool,
        options: dict[str, Any],
        lora_rank: int = 0,
        timeout_s: float | None = None,
    ) -> None:
        url = urlsplit(address)
        if url.scheme != "http" or not url.hostname:
            raise ValueError(f"rollout.server {address!r}: give an address such as http://127.0.0.1:8000")
        self._address, self._place, self._timeout_s = address, (url.hostname, url.port or 80), timeout_s
        self._name = uuid.uuid4().hex  # by which the server knows that no other trainer changed its weights
        settings = {"config": config, "dtype": dtype, "sleeps": sleeps, "options": options, "lora_rank": lora_rank}
        self.max_model_len = int(self._ask("start", settings)["max_model_len"])

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replaces all weights."""
        self._send_weights(weights)
        self._ask("load")

    def adapt(self, config: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Replaces the adapters."""
        self._send_weights(weights.items())
        self._ask("adapt", {"config": config})

    def _send_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        bucket: dict[str, Tensor] = {}
        for name, value in weights:
            bucket[name] = value.cpu().contiguous()
            if sum(tensor.nbytes for tensor in bucket.values()) >= BUCKET_BYTES:
                self._send("weights", safetensors.torch.save(bucket))
                bucket = {}
        self._send("weights", safetensors.torch.save(bucket))

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[Sampled]:
        """One response a prompt, each with a seed of its own."""
        asked = {"prompts": [list(p) for p in prompts], "seeds": list(seeds), "sampling": asdict(sampling)}
        return [(ids, log_probs) for ids, log_probs in self._ask("sample", asked)["rows"]]

    def sleep(self) -> None:
        """Frees the memory of weights and cache; `load` comes before the next `sample`."""
        self._ask("sleep")

    def close(self) -> None:
        """Leaves the server, which keeps its engine for the next that asks for the same."""
        # Each request had a connection of its own: there is nothing to end.

    def _ask(self, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._send(what, json.dumps(body or {}).encode())

    def _send(self, what: str, body: bytes) -> dict[str, Any]:
        connection = http.client.HTTPConnection(*self._place, timeout=self._timeout_s)
        try:
            connection.request("POST", f"/{what}", body, {"Trainer": self._name})
            reply = connection.getresponse()
            answer: dict[str, Any] = json.loads(reply.read())
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(
                f"rollout.server {self._address}: no answer to {what!r} ({type(error).__name__}: {error}); is "
                "`python -m repirl.rollout.vllm_server` running there?"
            ) from error
        finally:
            connection.close()
        if reply.status == 400:
            raise ValueError(f"rollout.server {self._address}: {answer['error']}")
        if reply.status != 200:
            raise RuntimeError(f"rollout.server {self._address} failed at {what!r}: {answer['error']}")
        return answer
