import json

import pytest
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from repirl.data.expert import ExpertData
from repirl.data.sources import Table
from repirl.learning.settings import Text
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.repirl import RePIRL
from repirl.verifiers.math import MathVerifier

TOKENS = [*"0123456789+= .:Ans\n", "The", " answer is ", "\\boxed{", "}"]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


@pytest.fixture
def write_rows(tmp_path):
    """A JSONL file of the given rows in the test's folder."""

    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def problems(write_rows):
    rows = [{"problem": f"1+{n}=", "solution": f"1+{n}={1 + n}", "answer": str(1 + n)} for n in range(6)]
    return write_rows("problems.jsonl", rows)


@pytest.fixture
def data(problems) -> LightningDataModule:
    return ExpertData(train=Table(problems), val=Table(problems), predict=Table(problems), batch_prompts=2)


def make_module(prm: PRM | None = None) -> LightningModule:
    return RePIRL(
        policy=Policy(config=CONFIG, tokens=TOKENS),
        prm=prm,
        verifier=MathVerifier(),
        samples=2,
        text=Text(max_prompt_tokens=16, max_response_tokens=24),
        eval_samples=0,
    )


def make_trainer(tmp_path, callbacks, **options) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **({"logger": False, "num_sanity_val_steps": 0, "limit_val_batches": 0, "log_every_n_steps": 1} | options),
    )
