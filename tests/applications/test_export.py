"""Exported folders load in a process that has no repirl, and say what policy and PRM of the run say."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from repirl.__main__ import main
from repirl.applications.export import export
from repirl.applications.trained import load
from repirl.equality import require_same_rewards
from repirl.models.heads import HEADS
from repirl.models.modeling_repirl_prm import KINDS as KINDS_OF_FILE
from repirl.models.modeling_repirl_prm import RepirlPRMConfig, RepirlPRMForTokenClassification
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.sft import SFT
from tests.models.tiny import rows_of
from tests.modules.tiny import ADAM, LLAMA, SGD, TEXT, TOKENS, make_module, make_policy, run

LORA = {"r": 2, "target_modules": "all-linear"}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
NEWLINE = len(TOKENS) + 1
# Three lines, one of them blank, and an end token; a response of one token.
ROWS = rows_of([[2, 3], [4, 5, 6]], [[3, 4, NEWLINE, NEWLINE, 9, 2, NEWLINE, 5, 1], [6]])
PROBLEM, SOLUTION = "1a2b3", "\\boxed{a3\nb6}"


def gpt2() -> Policy:
    return Policy(config=GPT2, tokens=TOKENS)


MADE: dict[str, dict[str, Any]] = {
    **{f"{kind}-{by}": {"prm": PRM(kind, beta=0.7, granularity=by)} for kind in HEADS for by in ("token", "step")},  # type: ignore[arg-type]
    "low rank": {"prm": PRM("q_head", rank=2)},
    "adapters on one base": {"policy": make_policy(lora=LORA), "prm": PRM("implicit", lora=LORA)},
    "adapters under a head": {"policy": make_policy(lora=LORA), "prm": PRM("q_head", lora=LORA)},
    "adapters under a linear head": {"policy": make_policy(lora=LORA), "prm": PRM("linear")},
    "frozen backbone": {"prm": PRM("head", freeze_backbone=True)},
    "tied output": {
        "policy": Policy(config={**LLAMA, "tie_word_embeddings": True}, tokens=TOKENS),
        "prm": PRM("logit_difference"),
    },
    "reference of its own": {
        "prm": PRM("implicit", reference=Policy(config={**LLAMA, "num_hidden_layers": 2}, tokens=TOKENS))
    },
    "positions in a table": {"policy": gpt2(), "prm": PRM("q_head")},
    "no standard class with a score": {"policy": gpt2(), "prm": PRM("linear")},
    "half precision": {"policy": make_policy(dtype="bfloat16"), "prm": PRM("implicit")},
    "half precision under a head": {"policy": make_policy(dtype="bfloat16"), "prm": PRM("head")},
    "half precision under a linear head": {"policy": make_policy(dtype="bfloat16"), "prm": PRM("linear")},
}
STANDARD = ("linear-token", "adapters under a linear head", "half precision under a linear head")

# What a user runs who has torch and transformers alone: repirl cannot be imported.
ALONE = """
import re, sys
from pathlib import Path
sys.modules["repirl"] = None
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer
P, rows = sys.argv[1], torch.load(sys.argv[2])
ids, mask, response = rows["ids"], rows["mask"], rows["response"]
said = {}
with torch.no_grad():
    for place in sorted(Path(P).iterdir()):
        load = AutoModelForTokenClassification.from_pretrained
        prm = load(place / "prm", trust_remote_code=True, dtype=torch.float32).eval()
        known = {} if prm.config.model_type != "repirl_prm" else {"response_mask": response}
        as_saved = load(place / "prm", trust_remote_code=True)
        policy = AutoModelForCausalLM.from_pretrained(place / "policy")
        card = (place / "prm" / "README.md").read_text()
        given = f"folder, problem, solution = {[str(place / 'prm'), *sys.argv[3:5]]}"
        code = re.sub("folder, problem, solution = .*", lambda _: given, re.search("```python\\n(.*?)```", card, re.S)[1])
        names = {}
        exec(code, names)
        said[place.name] = {
            "rewards": prm(ids, attention_mask=mask, **known).logits[..., 0],
            "class": type(prm).__name__,
            "dtypes": sorted({str(p.dtype) for p in as_saved.parameters()}),
            "log_probs": policy(ids[:1, 1:]).logits.float().log_softmax(-1),
            "card": (names["prompt"] + names["response"], names["rewards"]),
        }
assert sys.modules["repirl"] is None
torch.save(said, "said.pt")
"""


def alone(script: str, *arguments: object, cwd: Path) -> None:
    env = os.environ | {"HF_MODULES_CACHE": str(cwd / "modules")}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def saved(path: Path, **options: Any) -> Any:
    """The checkpoint of a short run, and its module."""
    done = run(make_module(**{"policy_optimizer": ADAM, "prm_optimizer": ADAM} | options), steps=2)
    done.trainer.save_checkpoint(path)
    return done.module


@dataclass
class Exported:
    """A checkpoint, what it exports to, and what that said to a process of its own."""

    checkpoint: Path
    module: Any
    folder: Path
    said: dict[str, Any]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """All of MADE, exported; one process reads them all, since starting one takes seconds."""
    root = tmp_path_factory.mktemp("exported")
    (root / "out").mkdir()
    modules = {}
    for name, options in MADE.items():
        modules[name] = saved(root / f"{name}.ckpt", **options)
        export(root / f"{name}.ckpt", root / "out" / name, part="both")
    ids = torch.cat([ROWS.prompt_ids, ROWS.response_ids], dim=1)
    mask = torch.cat([ROWS.prompt_mask, ROWS.response_mask], dim=1).long()
    response = torch.cat([torch.zeros_like(ROWS.prompt_mask), ROWS.response_mask], dim=1)
    torch.save({"ids": ids, "mask": mask, "response": response}, root / "rows.pt")
    alone(ALONE, root / "out", root / "rows.pt", PROBLEM, SOLUTION, cwd=root)
    said = torch.load(root / "said.pt")
    return {name: Exported(root / f"{name}.ckpt", modules[name], root / "out" / name, said[name]) for name in MADE}


@torch.no_grad()
@pytest.mark.parametrize("name", MADE)
def test_a_folder_gives_the_rewards_of_the_prm(name: str, exported: dict[str, Exported]) -> None:
    one = exported[name]
    prm = PRM.from_checkpoint(one.checkpoint).float()
    expected = prm(ROWS)
    got = one.said["rewards"][:, ROWS.prompt_ids.shape[1] :].masked_fill(~ROWS.response_mask, 0)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert expected.abs().max() > 1e-3
    if not name.startswith("half"):
        assert torch.equal(expected, one.module.prm(ROWS))


def test_a_linear_head_is_a_class_of_transformers(exported: dict[str, Exported]) -> None:
    for name, one in exported.items():
        files = {path.name for path in (one.folder / "prm").iterdir()}
        assert one.said["class"] == (
            "LlamaForTokenClassification" if name in STANDARD else "RepirlPRMForTokenClassification"
        )
        assert ("modeling_repirl_prm.py" in files) == (name not in STANDARD)
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files
        card = (one.folder / "prm" / "README.md").read_text(encoding="utf-8")
        assert ("layer has a bias" in card) == (name in STANDARD)
        assert name not in STANDARD or f"has a bias, {one.module.prm.head.score.bias.item():.6g}," in card


@pytest.mark.parametrize("name", MADE)
def test_weights_keep_their_type_and_heads_are_float32(name: str, exported: dict[str, Exported]) -> None:
    expected = {
        "half precision": ["torch.bfloat16"],
        "half precision under a head": ["torch.bfloat16", "torch.float32"],
        "half precision under a linear head": ["torch.bfloat16"],  # transformers has one type for its own classes
    }
    assert exported[name].said["dtypes"] == expected.get(name, ["torch.float32"])


@torch.no_grad()
@pytest.mark.parametrize("name", MADE)
def test_a_folder_gives_the_policy_s_log_probabilities(name: str, exported: dict[str, Exported]) -> None:
    one = exported[name]
    expected = plain_log_probs(one.module.policy)
    assert torch.allclose(one.said["log_probs"], expected, atol=0.2 if name.startswith("half") else 1e-4)


def plain_log_probs(policy: Policy) -> Tensor:
    ids = torch.cat([ROWS.prompt_ids, ROWS.response_ids], dim=1)[:1, 1:]
    return policy.model(ids).logits.float().log_softmax(-1)


@pytest.mark.parametrize("name", MADE)
def test_the_code_of_the_card_scores_as_training_does(name: str, exported: dict[str, Exported]) -> None:
    one = exported[name]
    trained = load(one.checkpoint)
    score, codec = trained.score(PROBLEM, SOLUTION), trained.codec
    ids, rewards = one.said["card"]
    assert ids == [*codec.encode_prompt(PROBLEM), *codec.encode_response(SOLUTION)]
    exact = not name.startswith("half")
    assert torch.allclose(rewards.float(), torch.tensor(score.token_rewards), atol=1e-5 if exact else 0.1)


def test_the_folder_s_file_knows_every_kind() -> None:
    assert tuple(HEADS) == KINDS_OF_FILE
    with pytest.raises(ValueError, match="kind 'constant' is none of q_head"):
        RepirlPRMConfig(kind="constant")


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(exported: dict[str, Exported]) -> None:
    folder = exported["q_head-step"].folder / "prm"
    model = RepirlPRMForTokenClassification.from_pretrained(folder).eval()
    ids = torch.tensor([[2, 3, 4, NEWLINE, 5, 1]])
    response = torch.tensor([[False, False, True, True, True, True]])
    alone = model(ids, response_mask=response).logits[0, :, 0]
    pad = torch.nn.functional.pad
    for left, right in ((3, 0), (0, 3), (2, 4)):
        mask = pad(torch.ones_like(ids), (left, right))
        got = model(pad(ids, (left, right), value=7), mask, pad(response, (left, right))).logits[0, :, 0]
        assert torch.allclose(got, pad(alone, (left, right)), atol=1e-6)
    assert alone.nonzero()[:, 0].tolist() == [3, 5]  # two lines
    with pytest.raises(ValueError, match="summed over steps: give response_mask"):
        model(ids)


# ---- adapters ----

WITH_ADAPTERS = """
import sys
sys.modules["repirl"] = None
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2])
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[3])).logits.log_softmax(-1), "said.pt")
"""


@torch.no_grad()
def test_adapters_alone_are_read_by_peft(tmp_path: Path) -> None:
    make_policy(init_seed=4).load().save_pretrained(tmp_path / "start")
    module = saved(tmp_path / "two.ckpt", policy=Policy(path=str(tmp_path / "start"), lora=LORA))
    export(tmp_path / "two.ckpt", tmp_path / "adapters", adapter=True)
    files = {path.name for path in (tmp_path / "adapters").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= files
    assert "model.safetensors" not in files
    ids = torch.cat([ROWS.prompt_ids, ROWS.response_ids], dim=1)[:1, 1:]
    torch.save(ids, tmp_path / "ids.pt")
    alone(WITH_ADAPTERS, tmp_path / "start", tmp_path / "adapters", tmp_path / "ids.pt", cwd=tmp_path)
    said = torch.load(tmp_path / "said.pt")
    assert torch.allclose(said, plain_log_probs(module.policy), atol=1e-5)
    start = Policy(path=str(tmp_path / "start")).load()
    assert (said - plain_log_probs(start)).abs().max() > 1e-2  # the adapters do something
    card = (tmp_path / "adapters" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["base_model"] == str(tmp_path / "start")


# ---- the command line, and what it refuses ----


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of weights alone, with a PRM."""
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "last.ckpt"
    done = run(make_module(prm=PRM("linear")), steps=2)
    done.trainer.save_checkpoint(path, weights_only=True)
    return path


def repirl(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, list[str]]:
    status = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


def test_weights_alone_suffice(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "model"
    status, out, _ = repirl(capsys, "export", "--checkpoint", checkpoint, "--to", "hf", "--output", output)
    assert (status, out.startswith(f"{output} is written")) == (0, True)
    policy = Policy(path=str(output)).load()
    with torch.no_grad():
        assert torch.equal(policy(ROWS)[0], Policy.from_checkpoint(checkpoint)(ROWS)[0])
    assert list(output.parent.iterdir()) == [output]  # no temporary folder is left


@pytest.mark.parametrize(
    ("arguments", "what", "todo"),
    [
        (["--checkpoint=no.ckpt"], "--checkpoint: 'no.ckpt' does not exist", "give an existing .ckpt file"),
        (["--part=value"], "--part: unknown value 'value'", "give policy or prm or both"),
        (["--to=gguf"], "--to: unknown value 'gguf'", "give hf"),
        (["--part=prm", "--adapter"], "--adapter: a PRM is exported whole", "leave --adapter out"),
        (["--adapter"], "nothing was exported: the policy has no adapters: all its weights", "REPIRL_TRACEBACK=1"),
        (["--output=here"], "--output: 'here' exists", "name another folder, or remove this one"),
        (["--output=file/model"], "--output: 'file/model' cannot be written: ", "name another folder"),
        (["--checkpoint=file"], "nothing was exported: checkpoint 'file' is damaged, or no", "REPIRL_TRACEBACK=1"),
    ],
)
def test_a_mistake_takes_two_lines(
    arguments: list[str],
    what: str,
    todo: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    given = ["export", f"--checkpoint={checkpoint}", "--output=model", *arguments]
    status, out, err = repirl(capsys, *given)
    assert (status, out) == (2, "")
    assert len(err) == 2, err
    assert err[0].startswith(what)
    assert err[1].startswith(todo)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "here"]  # nothing half written


@pytest.mark.parametrize("part", ["prm", "both"])
def test_a_run_without_a_prm_is_named(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(SFT(policy=make_policy(), policy_optimizer=SGD, text=TEXT))
    done.trainer.save_checkpoint(tmp_path / "sft.ckpt")
    given = ["export", f"--checkpoint={tmp_path / 'sft.ckpt'}", f"--output={tmp_path / 'out'}", f"--part={part}"]
    status, _, err = repirl(capsys, *given)
    assert status == 2
    assert err == [
        f"checkpoint '{tmp_path / 'sft.ckpt'}' holds no PRM",
        "export its policy, or give that of a run that trained one",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["sft.ckpt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": LORA}, "--adapter: the policy's base was made from a configuration"),
        ({"lora": {**LORA, "init_lora_weights": "pissa"}}, "the policy's adapters change its base's own weights"),
    ],
)
def test_adapters_that_are_nothing_alone_are_refused(options: Any, message: str, tmp_path: Path) -> None:
    made = make_policy(**options)
    if "pissa" in str(options):
        make_policy().load().save_pretrained(tmp_path / "start")
        made = Policy(path=str(tmp_path / "start"), **options)
    saved(tmp_path / "two.ckpt", policy=made)
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "two.ckpt", tmp_path / "out", adapter=True)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_rewards_that_differ_are_named() -> None:
    expected = torch.tensor([[1.0, -3.0]])  # mean size 2: 2e-4 a token are rounding
    require_same_rewards(expected, expected + 1.9e-4, "x")
    with pytest.raises(ValueError, match=r"x: its rewards differ from the PRM's by 0.00021 a token, .* at most 0.0002"):
        require_same_rewards(expected, expected + 2.1e-4, "x")
    with pytest.raises(ValueError, match="differ from the PRM's by nan"):
        require_same_rewards(expected, expected * float("nan"), "x")
