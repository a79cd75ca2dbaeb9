"""vLLM in this process: its engine with weights from outside."""

import gc
import json
import os
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

MISSING = (
    "rollout: vLLM is not installed. On a GPU machine run `pip install repirl[vllm]`, on a CPU `make vllm-test` shows how "
    "(docs/vllm.md); or sample with repirl.rollout.transformers.InProcess"
)
RESERVED = frozenset(
    {
        "model",
        "tokenizer",
        "skip_tokenizer_init",
        "load_format",
        "dtype",
        "quantization",
        "logprobs_mode",
        "enable_lora",
        "max_lora_rank",
        "max_loras",
        "max_cpu_loras",
        "enable_sleep_mode",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
    }
)
"""Arguments of vllm.LLM that are decided here: another value would change what is sampled, or break weight updates."""


LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM makes room for."""


@dataclass(frozen=True)
class Sampling:
    """How one call samples. A response ends with one of `end_ids`, which it keeps, or after `max_tokens` tokens."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    max_tokens: int
    end_ids: tuple[int, ...]


Sampled = tuple[list[int], list[float]]
"""A response's tokens and their log-probabilities under the distribution that was sampled from."""


class Engine:
    """vLLM's `LLM` over a config and, once `load` was called, weights.

    Args:
        config: the model's config.json.
        dtype: of weights and computation, such as `float32`.
        sleeps: `sleep` will be called.
        lora_rank: largest rank of the adapters that `adapt` will bring; 0 = none will come.
        options: further arguments of vllm.LLM.

    Raises:
        ValueError: vLLM is missing, or cannot do what is asked of it here.
    """

    def __init__(
        self, config: dict[str, Any], *, dtype: str, sleeps: bool, options: dict[str, Any], lora_rank: int = 0
    ) -> None:
        if taken := sorted(RESERVED & options.keys()):
            raise ValueError(f"rollout.engine: {', '.join(taken)} cannot be set: repirl decides it; remove it")
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise ValueError(
                "rollout: an engine inside each of several processes is not supported; start one "
                "`python -m repirl.rollout.vllm_server` a process, and give their addresses as rollout.server"
            )
        # One process: weights are handed over as they are. Threads and log level are the caller's.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        for name, value in (("VLLM_CPU_OMP_THREADS_BIND", "nobind"), ("VLLM_LOGGING_LEVEL", "ERROR")):
            os.environ.setdefault(name, value)
        try:
            from vllm.platforms import current_platform

            import vllm
        except ModuleNotFoundError as error:
            if error.name != "vllm":
                raise
            raise ValueError(MISSING) from None
        if sleeps and current_platform.is_cpu():
            raise ValueError("rollout.sleep: vLLM frees memory on GPUs only; set it to false on a CPU")
        self._vllm, self._asleep = vllm, False
        self._adapters: Any = None  # the request for those that are sampled with
        self._versions = 0  # of adapters that have come
        self._own_group = not torch.distributed.is_initialized()  # else vLLM uses the trainer's
        set_num_threads = torch.set_num_threads
        with tempfile.TemporaryDirectory() as folder, _apart():
            Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
            self._llm = vllm.LLM(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                dtype=dtype,
                logprobs_mode="processed_logprobs",
                enable_sleep_mode=sleeps,
                **(_for_adapters(lora_rank) if lora_rank else {}),
                **{"disable_log_stats": True, **options},
            )
        torch.set_num_threads = set_num_threads  # the CPU worker replaces it by a function that does nothing
        self.max_model_len = int(self._llm.llm_engine.model_config.max_model_len)

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replaces all weights, and forgets what was computed with the old ones. All must come; adapters come after."""
        with _apart():
            if self._asleep:
                self._llm.wake_up(tags=["weights"])
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
            self._llm.collective_rpc(_repack_tied_head)
            if self._asleep:
                self._llm.wake_up(tags=["kv_cache"])
                self._asleep = False
            self._llm.reset_prefix_cache()

    def adapt(self, config: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Samples with these adapters from now on, in the place of the ones before.

        config, weights: as in `repirl.weights.Adapters`. They get a new name each time: vLLM keeps what it knows by name.
        """
        from vllm.lora.request import LoRARequest

        self._versions += 1
        with tempfile.TemporaryDirectory() as folder, _apart():
            Path(folder, "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
            plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
            safetensors.torch.save_file(plain, Path(folder, "adapter_model.safetensors"))
            request = LoRARequest(f"policy-{self._versions}", self._versions, folder)
            if self._adapters is not None:
                self._llm.llm_engine.remove_lora(self._adapters.lora_int_id)
            if not self._llm.llm_engine.add_lora(request):  # read here, before the folder goes
                raise RuntimeError(f"vLLM did not take the adapters {request.lora_name}")
            self._adapters = request
            self._llm.reset_prefix_cache()

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[Sampled]:
        """One response a prompt, each with a seed of its own."""
        parameters = [
            self._vllm.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                seed=seed,
                max_tokens=sampling.max_tokens,
                stop_token_ids=list(sampling.end_ids),
                ignore_eos=True,  # what ends a response is in end_ids
                logprobs=0,  # of the sampled token alone
                detokenize=False,
            )
            for seed in seeds
        ]
        with _apart():
            asked = [{"prompt_token_ids": list(p)} for p in prompts]
            outputs = self._llm.generate(asked, parameters, use_tqdm=False, lora_request=self._adapters)
        return [_sampled(output.outputs[0]) for output in outputs]

    def sleep(self) -> None:
        """Frees the memory of weights and cache; `load` comes before the next `sample`."""
        if not self._asleep:
            self._llm.sleep(level=2)
            self._asleep = True

    def close(self) -> None:
        """Frees everything."""
        from vllm.distributed import destroy_distributed_environment, destroy_model_parallel

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        destroy_model_parallel()
        if self._own_group:
            destroy_distributed_environment()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _for_adapters(rank: int) -> dict[str, Any]:
    """Arguments of vllm.LLM that make room for one set of adapters of this rank."""
    room = min(allowed for allowed in LORA_RANKS if allowed >= rank)
    return {"enable_lora": True, "max_lora_rank": room, "max_loras": 1, "max_cpu_loras": 1}


@contextmanager
def _apart() -> Iterator[None]:
    """Without gradients, and with the random generators as they were: vLLM seeds all of them.

    Not in inference mode, in which Lightning validates: its tensors could not be written later.
    """
    state = random.getstate()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(state)


def _sampled(output: Any) -> Sampled:
    ids = list(output.token_ids)
    return ids, [float(found[token].logprob) for found, token in zip(output.logprobs, ids, strict=True)]


def _repack_tied_head(worker: Any) -> None:
    """On the CPU the output layer multiplies with a packed copy; one that is tied gets no weights of its own at a reload."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in worker.model_runner.get_model().modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
