"""One side of `peers.py`, in a process of its own: trains, one iteration each time a line comes in, and answers its seconds.

python benchmarks/peer_worker.py '{"side": "trl", "folder": ..., ...}'
"""

import json
import logging
import os
import sys
import time
import warnings
from functools import partial
from typing import Any, TextIO

import torch
from machine import use_clock
from workloads import PHASES, Batches, Work, is_right, module_of, synthetic_prompts

from repirl.learning.prm_objectives import IRL
from repirl.learning.settings import Advantage

LEARNING_RATE = 1e-5


class Turn:
    """Waits for the word to go, and reports how long an iteration took."""

    def __init__(self, answers: TextIO) -> None:
        self.answers, self.start = answers, 0.0
        self.tokens = 0  # of responses, sampled in this iteration

    def begin(self) -> None:
        """Says that it is ready; returns when a line was read."""
        self._say({"ready": True})
        if not sys.stdin.readline():
            sys.exit(0)
        self.tokens, self.start = 0, time.perf_counter()

    def end(self, phases: dict[str, float]) -> None:
        """Reports the iteration that just ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._say({"seconds": time.perf_counter() - self.start, "tokens": self.tokens, "phases": phases})

    def _say(self, record: dict[str, Any]) -> None:
        self.answers.write(json.dumps(record) + "\n")
        self.answers.flush()


def train_repirl(settings: dict[str, Any], turn: Turn) -> None:
    """`rloo`: no PRM. `repirl`: a PRM of the policy's size, updated once. `defaults`: the same, optimisers as shipped."""
    from lightning.pytorch import Callback, Trainer

    from repirl.models.policy import Policy

    class Timed(Callback):
        def on_train_batch_start(self, *_: object) -> None:
            turn.begin()

        def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
            figures = {phase: float(trainer.callback_metrics.get(f"time/{phase}_s", 0.0)) for phase in PHASES}
            mean = float(trainer.callback_metrics["rollout/response_tokens"])
            turn.tokens = round(mean * work.prompts * work.samples)
            turn.end(figures)

    work = Work(**settings["work"])
    fused = partial(torch.optim.AdamW, lr=LEARNING_RATE, fused=True)
    changed: dict[str, Any] = {"policy_optimizer": fused, "prm_optimizer": fused}
    if settings["side"] == "defaults":  # as shipped, which has a reference
        changed = {"objective": IRL(), "advantage": Advantage()}
    policy = Policy(path=settings["folder"], dtype=settings["dtype"])
    module = module_of(policy, work, with_prm=settings["side"] != "rloo", **changed)
    trainer = Trainer(
        accelerator=settings["device"],
        devices=1,
        max_steps=settings["iterations"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Timed()],
    )
    trainer.fit(module, Batches(synthetic_prompts(module.policy.tokenizer, work, settings["iterations"])))


def train_trl(settings: dict[str, Any], turn: Turn) -> None:
    """TRL's RLOOTrainer at the settings that suit it best."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    disable_progress_bars()

    class Timed(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            turn.begin()

        def on_step_end(self, *_: object, **__: object) -> None:
            turn.end({})

    def outcome(completions: list[str], completion_ids: list[list[int]], **_: object) -> list[float]:
        turn.tokens += sum(map(len, completion_ids))
        return [float(is_right(text)) for text in completions]

    work = Work(**settings["work"])
    rows, parts = work.prompts * work.samples, settings["accumulation"]
    tokenizer = AutoTokenizer.from_pretrained(settings["folder"])
    batches = synthetic_prompts(tokenizer, work, settings["iterations"])
    trainer = RLOOTrainer(
        model=AutoModelForCausalLM.from_pretrained(settings["folder"], dtype=getattr(torch, settings["dtype"])),
        processing_class=tokenizer,
        reward_funcs=outcome,
        train_dataset=Dataset.from_list([{"prompt": p.problem.text} for batch in batches for p in batch]),
        callbacks=[Timed()],
        args=RLOOConfig(
            output_dir=settings["output"],
            use_cpu=settings["device"] == "cpu",
            bf16=settings["dtype"] == "bfloat16",
            gradient_checkpointing=False,
            per_device_train_batch_size=rows // parts,
            gradient_accumulation_steps=parts,
            steps_per_generation=parts,
            num_generations=work.samples,
            max_completion_length=work.response_tokens,
            beta=0.0,
            temperature=1.0,
            optim="adamw_torch_fused",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            max_steps=settings["iterations"],
            shuffle_dataset=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        ),
    )
    # No token ends a completion: all have the full length, and no logits processor has to see to it.
    trainer.eos_token_ids = [-1]
    trainer.generation_config.eos_token_id = None
    trainer.generation_kwargs["eos_token_id"] = None
    trainer.model.generation_config.eos_token_id = None
    trainer.train()


def train_plain(settings: dict[str, Any], turn: Turn) -> None:
    """The same iteration in the fewest lines: `generate`, padded rows, full logits, autograd."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    work, device = Work(**settings["work"]), torch.device(settings["device"])
    tokenizer = AutoTokenizer.from_pretrained(settings["folder"])
    model = AutoModelForCausalLM.from_pretrained(settings["folder"], dtype=getattr(torch, settings["dtype"])).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    for batch in synthetic_prompts(tokenizer, work, settings["iterations"]):
        turn.begin()
        prompts = torch.tensor([p.token_ids for p in batch for _ in range(work.samples)], device=device)
        kept = {"max_new_tokens": work.response_tokens, "eos_token_id": None, "pad_token_id": 0, "do_sample": True}
        # Off: what the model's own configuration would truncate.
        ids = model.generate(prompts, attention_mask=torch.ones_like(prompts), top_k=0, top_p=1.0, **kept)
        texts = tokenizer.batch_decode(ids[:, work.prompt_tokens :])
        rewards = torch.tensor([float(is_right(text)) for text in texts], device=device).view(-1, work.samples)
        baseline = (rewards.sum(1, keepdim=True) - rewards) / max(1, work.samples - 1)
        advantages = (rewards - baseline).flatten()[:, None]
        for part in range(settings["accumulation"]):
            rows = slice(part, None, settings["accumulation"])
            logits = model(ids[rows], use_cache=False, logits_to_keep=work.response_tokens + 1).logits[:, :-1]
            log_probs = logits.float().log_softmax(-1).gather(-1, ids[rows, work.prompt_tokens :, None])[..., 0]
            ratio = (log_probs - log_probs.detach()).exp()
            (-(ratio * advantages[rows]).mean() / settings["accumulation"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turn.tokens = ids[:, work.prompt_tokens :].numel()
        turn.end({})


SIDES = {"trl": train_trl, "plain": train_plain}


def main() -> None:
    """Runs the side that the settings name."""
    settings = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(settings["threads"])
    use_clock(settings["clock"])
    SIDES.get(settings["side"], train_repirl)(settings, Turn(answers))


if __name__ == "__main__":
    main()
