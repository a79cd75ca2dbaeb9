"""A checkpoint says what rebuilds its policy and PRM; both come back without the trainer, and say the same to the bit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from repirl import __version__, checkpoints
from repirl.data.fingerprint import fingerprint
from repirl.learning.schedule import Schedule
from repirl.models.heads import HEADS
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.sft import SFT
from tests.models.tiny import rows_of
from tests.modules.tiny import ADAM, LLAMA, SGD, TEXT, TOKENS, Run, make_data, make_module, make_policy, run

ROOT = Path(__file__).parents[2]
LORA = {"r": 2, "target_modules": "all-linear"}
ROWS = rows_of([[2, 3], [4, 5, 6]], [[3, 4, 16, 1], [6, 7]])


def saved(path: Path, **options: Any) -> Run:
    done = run(make_module(**{"policy_optimizer": ADAM, "prm_optimizer": ADAM} | options), steps=2)
    done.trainer.save_checkpoint(path)
    return done


@torch.no_grad()
def require_equal(done: Run, path: Path) -> None:
    policy, prm = Policy.from_checkpoint(path), PRM.from_checkpoint(path)
    assert policy.packs == done.module.policy.packs
    for value, expected in zip(policy(ROWS), done.module.policy(ROWS), strict=True):
        assert torch.equal(value, expected)
    rewards = done.module.prm(ROWS)
    assert torch.equal(prm(ROWS), rewards)
    assert rewards.abs().max() > 1e-4
    text = "1a2b\\boxed{3}\n"
    assert policy.tokenizer.decode(policy.tokenizer.encode(text)) == text
    assert prm.backbone is not None
    assert prm.backbone.tokenizer.get_vocab() == done.module.policy.tokenizer.get_vocab()


@pytest.mark.parametrize("granularity", ["token", "step"])
@pytest.mark.parametrize("kind", HEADS)
def test_every_kind_comes_back(kind: Any, granularity: Any, tmp_path: Path) -> None:
    path = tmp_path / "two.ckpt"
    require_equal(saved(path, prm=PRM(kind, beta=0.7, granularity=granularity)), path)


@pytest.mark.parametrize("updates", [0, 2])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_reference_of_its_own_comes_back(updates: int, layers: int, tmp_path: Path) -> None:
    path, config = tmp_path / "two.ckpt", {**LLAMA, "num_hidden_layers": layers}
    start = Policy(config=config, tokens=TOKENS, init_seed=7)
    done = saved(path, prm=PRM("implicit", reference=start), schedule=Schedule(prm_updates=updates))
    require_equal(done, path)
    again = PRM("implicit", reference=Policy(config=config, tokens=TOKENS, init_seed=8), weights=str(path))
    again.build(make_policy().load())
    with torch.no_grad():
        assert torch.equal(again(ROWS), done.module.prm(ROWS))


@pytest.mark.parametrize(
    ("policy", "prm"),
    [
        ({"lora": LORA}, {"lora": {"r": 3, "target_modules": ["q_proj"]}}),
        ({"lora": LORA}, {}),
        ({"lora": {**LORA, "init_lora_weights": "pissa"}}, {}),
        ({"lora": {**LORA, "layer_replication": [[0, 1], [0, 1]]}}, {}),
        ({"lora": LORA, "dtype": "bfloat16"}, {"lora": LORA}),
        ({"dtype": "bfloat16"}, {}),
        ({"gradient_checkpointing": True}, {}),
    ],
)
@pytest.mark.parametrize("kind", ["q_head", "implicit"])
def test_adapters_and_precisions_come_back(policy: Any, prm: Any, kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "two.ckpt"
    require_equal(saved(path, policy=make_policy(**policy), prm=PRM(kind, **prm)), path)


@pytest.mark.parametrize("prm", [{"rank": 2}, {"freeze_backbone": True}, {"freeze_backbone": True, "kind": "linear"}])
@pytest.mark.parametrize("lora", [None, LORA])
def test_settings_of_the_head_come_back(prm: dict[str, Any], lora: Any, tmp_path: Path) -> None:
    path = tmp_path / "two.ckpt"
    require_equal(saved(path, policy=make_policy(lora=lora), prm=PRM(**prm)), path)


def test_an_own_backbone_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "two.ckpt"
    require_equal(saved(path, prm=PRM("implicit", backbone=make_policy(init_seed=5, lora=LORA))), path)


def test_the_folder_that_a_run_started_from_may_be_gone(tmp_path: Path) -> None:
    make_policy(init_seed=4).load().save_pretrained(tmp_path / "start")
    done = saved(tmp_path / "two.ckpt", policy=Policy(path=str(tmp_path / "start")), prm=PRM("implicit"))
    shutil.rmtree(tmp_path / "start")
    require_equal(done, tmp_path / "two.ckpt")
    again = Policy.from_checkpoint(tmp_path / "two.ckpt")
    again.save_pretrained(tmp_path / "exported")  # it is a policy like any other
    assert torch.equal(Policy(path=str(tmp_path / "exported")).load()(ROWS)[0], again(ROWS)[0])


def test_what_a_checkpoint_says(tmp_path: Path) -> None:
    data = make_data()
    done = run(make_module(), data)
    done.trainer.save_checkpoint(tmp_path / "one.ckpt")
    said = checkpoints.read(tmp_path / "one.ckpt")["repirl"]
    assert said["version"] == __version__
    assert said["configuration"] is None  # no command line
    assert said["data"] == fingerprint(data._prompts["train"], data.parts, data.strata)
    assert said["data"]["prompts"] == 8
    assert said["policy"]["arguments"]["tokens"] == done.module.policy.arguments["tokens"]
    assert said["policy"]["stored"]["config"]["hidden_size"] == 16
    assert said["prm"]["arguments"] == {"rank": None, "freeze_backbone": False, "lora": None}


CONFIG = """
trainer: {max_steps: 1, enable_checkpointing: true, default_root_dir: ., callbacks: null}
model:
  init_args:
    text: {max_response_tokens: 70}
data:
  init_args:
    batch_prompts: 4
    train: {init_args: {count: 32}}
"""


def test_the_command_line_s_configuration_is_stored(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "repirl", "fit", f"--config={ROOT / 'configs/toy/start.yaml'}"]
    command += [f"--config={tmp_path / 'small.yaml'}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("*.ckpt")
    said = checkpoints.read(path)["repirl"]
    stored = yaml.safe_load(said["configuration"])
    assert stored["model"]["class_path"] == "repirl.modules.sft.SFT"
    assert stored["model"]["init_args"]["text"]["max_response_tokens"] == 70
    assert stored["trainer"]["max_steps"] == 1
    assert said["data"]["prompts"] == 32
    assert said["prm"] is None


# ---- without the trainer ----

ALONE = """
import sys
from pathlib import Path
import torch
from repirl.models.policy import Policy
from repirl.models.prm import PRM
policy, prm = Policy.from_checkpoint(sys.argv[1]), PRM.from_checkpoint(Path(sys.argv[1]))
assert not [name for name in sys.modules if name.startswith("lightning")]
from tests.models.tiny import rows_of
rows = rows_of([[2, 3], [4, 5, 6]], [[3, 4, 16, 1], [6, 7]])
torch.save([policy(rows)[0].detach(), prm(rows).detach()], sys.argv[2])
"""


def test_lightning_is_not_imported(tmp_path: Path) -> None:
    done = saved(tmp_path / "two.ckpt", prm=PRM("implicit"))
    subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "two.ckpt"), str(tmp_path / "said.pt")], cwd=ROOT, check=True
    )
    log_probs, rewards = torch.load(tmp_path / "said.pt")
    assert torch.equal(log_probs, done.module.policy(ROWS)[0])
    assert torch.equal(rewards, done.module.prm(ROWS))


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(from repirl import PRM, Policy\n.*?)```", text, flags=re.DOTALL)
    done = saved(tmp_path / "two.ckpt")
    code = re.sub(r'"outputs/[^"]*\.ckpt"', repr(str(tmp_path / "two.ckpt")), example)
    assert code != example
    names: dict[str, Any] = {}
    exec(code, names)
    rewards = done.module.prm(names["rows"])
    assert rewards.abs().max() > 0
    assert torch.equal(names["rewards"], rewards)


# ---- what cannot come back ----


def test_a_checkpoint_without_a_description_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "two.ckpt")
    content = checkpoints.read(tmp_path / "two.ckpt")
    older = {"version": "0.1.0", "prm": {"kind": "q_head", "granularity": "token", "beta": None}, "base_measure": None}
    for number, description in enumerate((None, older)):
        path = tmp_path / f"{number}.ckpt"
        rest = {name: value for name, value in content.items() if name != "repirl"}
        checkpoints.write(rest | ({} if description is None else {"repirl": description}), path)
        with pytest.raises(ValueError, match=rf"checkpoint '.*{number}.ckpt' does not describe its policy: an older"):
            Policy.from_checkpoint(path)
        with pytest.raises(ValueError, match="does not describe its prm: an older repirl or another program"):
            PRM.from_checkpoint(path)


def test_a_checkpoint_without_a_prm_is_named(tmp_path: Path) -> None:
    done = run(SFT(policy=make_policy(), policy_optimizer=SGD, text=TEXT))
    done.trainer.save_checkpoint(tmp_path / "sft.ckpt")
    assert torch.equal(Policy.from_checkpoint(tmp_path / "sft.ckpt")(ROWS)[0], done.module.policy(ROWS)[0])
    with pytest.raises(ValueError, match=r"sft.ckpt' holds no prm: give the checkpoint of a run that trained one"):
        PRM.from_checkpoint(tmp_path / "sft.ckpt")
    with pytest.raises(ValueError, match="no such file"):
        Policy.from_checkpoint(tmp_path / "other.ckpt")
