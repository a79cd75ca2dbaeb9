import pytest
import torch
from lightning.pytorch import LightningModule
from transformers import AutoModelForCausalLM, AutoTokenizer

from repirl.callbacks.export import ExportPolicy
from repirl.models.prm import PRM
from tests.callbacks.conftest import make_module, make_trainer


def test_the_folder_holds_the_trained_policy(tmp_path, data):
    module = make_module(PRM())
    make_trainer(tmp_path, [ExportPolicy(str(tmp_path / "model"))], max_steps=1).fit(module, data)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in module.policy.model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.encode("1+2=") == module.policy.tokenizer.encode("1+2=")


def test_a_module_without_policy_is_refused(tmp_path):
    callback = ExportPolicy(str(tmp_path / "model"))
    with pytest.raises(ValueError, match="LightningModule has no `policy`"):
        callback.on_train_end(make_trainer(tmp_path, []), LightningModule())


def test_a_file_is_refused(tmp_path):
    (tmp_path / "model").touch()
    with pytest.raises(ValueError, match="is a file"):
        ExportPolicy(str(tmp_path / "model"))
