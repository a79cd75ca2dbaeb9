"""Rollouts by vLLM: an engine in this process, or in a server of its own, which gets the policy's weights as they change.

vLLM is imported when the first response is asked for, so that configurations build where it is not installed.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from repirl.equality import PROMPT, RESPONSE, log_probs_of, probe_rows, require_same
from repirl.rollout.transformers import row_seed
from repirl.rollout.vllm_client import RemoteEngine
from repirl.rollout.vllm_engine import RESERVED, Engine, Sampled, Sampling
from repirl.structs import Generator, Response
from repirl.weights import dtype_name, plain_config, plain_weights, stamp


class VLLM(Generator):
    """Samples by vLLM, and gives its log-probabilities.

    Args:
        top_p, top_k, min_p: sample from a part of the distribution; for evaluation alone, training refuses it.
        stop_strings: a response ends when its text contains one (besides EOS).
        server: address of a `python -m repirl.rollout.vllm_server`, or one for each process in the order of ranks; None =
            an engine in this process.
        sleep: the engine frees its GPU memory between calls.
        engine: arguments of `vllm.LLM`, such as {gpu_memory_utilization: 0.4, max_model_len: 4096}.
    """

    gives_log_probs = True

    def __init__(
        self,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        stop_strings: list[str] | None = None,
        server: str | list[str] | None = None,
        sleep: bool = False,
        engine: dict[str, Any] | None = None,
    ) -> None:
        if not 0 < top_p <= 1 or top_k < 0 or not 0 <= min_p <= 1:
            raise ValueError(
                f"rollout: top_p {top_p} in (0, 1], top_k {top_k} >= 0 (0 = all tokens) and min_p {min_p} in [0, 1]"
            )
        if taken := sorted(RESERVED & (engine or {}).keys()):
            raise ValueError(f"rollout.engine: {', '.join(taken)} cannot be set, repirl decides it: remove it")
        self.top_p, self.top_k, self.min_p = top_p, top_k, min_p
        self.truncated = top_p < 1 or top_k > 0 or min_p > 0
        self.stop_strings, self.server, self.sleep, self.engine = stop_strings or [], server, sleep, engine or {}
        self._engine: Engine | RemoteEngine | None = None
        self._sent: list[float] | None = None  # the stamp of the weights that the engine has

    def attach(
        self,
        model: PreTrainedModel,
        *,
        decode: Callable[[Sequence[int]], str],
        pad_id: int,
        eos_ids: Sequence[int],
        max_response_tokens: int,
    ) -> None:
        """Says whose weights to use and when a response ends; weights that changed are sent at the next call."""
        self.close()
        self.model, self.decode = model, decode
        self.eos_ids, self.max_response_tokens = tuple(eos_ids), max_response_tokens

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        seeds: Sequence[int],
        temperature: float = 1.0,
    ) -> list[list[Response]]:
        """`samples` responses to each prompt, of at most max_response_tokens tokens; `temperature` 0 is greedy.

        Each row has a seed of its own. Equal seeds give equal rows as far as logits are equal, which in vLLM may depend on
        the batch by a rounding.

        Raises:
            ValueError: vLLM is missing, or a prompt leaves no room for a whole response.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
        if not prompts:
            return []
        engine = self._ready()
        longest = max(map(len, prompts))
        if longest + self.max_response_tokens > engine.max_model_len:
            raise ValueError(
                f"a prompt of {longest} tokens and a response of {self.max_response_tokens} exceed vLLM's max_model_len "
                f"{engine.max_model_len}: raise rollout.engine.max_model_len, or lower text.max_response_tokens"
            )
        rows = engine.sample(
            [list(prompt) for prompt in prompts for _ in range(samples)],
            [row_seed(seed, row) for seed in seeds for row in range(samples)],
            Sampling(
                temperature=temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                max_tokens=self.max_response_tokens,
                end_ids=self.eos_ids,
            ),
        )
        if self.sleep:
            engine.sleep()
            self._sent = None  # asleep it has none
        found = [self._response(row) for row in rows]
        return [found[first : first + samples] for first in range(0, len(found), samples)]

    def _ready(self) -> Engine | RemoteEngine:
        """The engine, started, with the weights as they are now."""
        if self._engine is None:
            options: dict[str, Any] = {"dtype": dtype_name(self.model), "sleeps": self.sleep, "options": self.engine}
            config = plain_config(self.model)
            self._engine = (
                Engine(config, **options) if self.server is None else RemoteEngine(_own(self.server), config, **options)
            )
        now = stamp(self.model)
        if self._sent != now:
            self._engine.load(plain_weights(self.model))
            self._require_same(self._engine)
            self._sent = now
        return self._engine

    def _require_same(self, engine: Engine | RemoteEngine) -> None:
        """Raises ValueError where the engine gives what it samples other log-probabilities than the policy does."""
        prompts = [row[:PROMPT] for row in probe_rows(self.model.config.get_text_config().vocab_size)]
        tokens = min(RESPONSE, engine.max_model_len - PROMPT)
        everything = Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, max_tokens=tokens, end_ids=self.eos_ids)
        sampled = engine.sample(prompts, list(range(len(prompts))), everything)
        found = torch.tensor([value for _, log_probs in sampled for value in log_probs])
        expected = log_probs_of(self.model, prompts, [ids for ids, _ in sampled])
        what = "rollout: vLLM does not sample from the policy whose weights it was sent"
        require_same(expected, found, dtype_name(self.model), what)

    def _response(self, row: Sampled) -> Response:
        """Cut after the token that completes a stop string: what the engine wrote after it has no influence on it."""
        ids, log_probs = row
        text = self.decode(ids)
        stopped = self._contains_stop(text)
        if stopped:
            count = bisect_left(range(1, len(ids)), True, key=lambda n: self._contains_stop(self.decode(ids[:n]))) + 1
            ids, log_probs = ids[:count], log_probs[:count]
            text = self.decode(ids)
        finished = stopped or ids[-1] in self.eos_ids
        return Response(token_ids=tuple(ids), text=text, finished=finished, log_probs=tuple(log_probs))

    def _contains_stop(self, text: str) -> bool:
        return any(stop in text for stop in self.stop_strings)

    def close(self) -> None:
        """Ends the engine in this process, or leaves the server; safe to call twice, and `generate` may follow."""
        engine, self._engine, self._sent = self._engine, None, None
        if engine is not None:
            engine.close()


def _own(server: str | list[str]) -> str:
    """This process's address."""
    addresses = [server] if isinstance(server, str) else server
    parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
    ranks = torch.distributed.get_world_size() if parallel else 1
    if len(addresses) != ranks:
        raise ValueError(f"rollout.server names {len(addresses)} servers for {ranks} processes: give one for each")
    return addresses[torch.distributed.get_rank() if parallel else 0]
