import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from repirl import checkpoints
from repirl.callbacks.export import ExportPolicy
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from tests.callbacks.conftest import make_module, make_trainer
from tests.modules.tiny import TOKENS, EvenDigits, run
from tests.modules.tiny import make_module as tiny_module


def test_the_folder_holds_the_trained_policy(tmp_path, data):
    module = make_module(PRM())
    make_trainer(tmp_path, [ExportPolicy(str(tmp_path / "model"))], max_steps=1).fit(module, data)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in module.policy.model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.encode("1+2=") == module.policy.tokenizer.encode("1+2=")


def test_the_best_checkpoint_is_exported_where_it_is_asked_for(tmp_path, data):
    """The figure is best after the first iteration, and the policy moves on."""
    module = tiny_module(verifier=EvenDigits())
    best = ModelCheckpoint(str(tmp_path / "best"), "best", monitor="figure", mode="max", every_n_train_steps=1)

    class Falling(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pl_module.log("figure", -float(trainer.global_step))

    callbacks = [Falling(), best, ExportPolicy(str(tmp_path / "model"), which="best")]
    run(module, steps=3, callbacks=callbacks, enable_checkpointing=True)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    stored = checkpoints.read(tmp_path / "best" / "best.ckpt")
    assert stored["global_step"] == 1
    weights = {name.removeprefix("policy.model."): value for name, value in stored["state_dict"].items()}
    assert all(torch.equal(value, weights[name]) for name, value in exported.items() if name in weights)
    last = module.policy.model.state_dict()
    assert any(not torch.equal(value, last[name]) for name, value in exported.items())
    with pytest.raises(ValueError, match="which=best needs a ModelCheckpoint with a `monitor`"):
        make_trainer(tmp_path, [ExportPolicy(str(tmp_path / "m"), which="best")]).fit(make_module(PRM()), data)


def test_a_module_without_policy_is_refused_before_training(tmp_path):
    class Plain(LightningModule):
        def training_step(self, batch, batch_idx):
            raise AssertionError("no step is made")

        def configure_optimizers(self):
            return None

    with pytest.raises(ValueError, match="Plain has no `policy`"):
        make_trainer(tmp_path, [ExportPolicy(str(tmp_path / "model"))], max_steps=1).fit(Plain(), [torch.zeros(1)])


def test_what_cannot_be_exported_is_known_before_training(tmp_path, data):
    module = make_module(PRM())
    module.configure_model()
    # Two weights that are one tensor and no declared tie: a saved folder has no way to say so.
    layers = module.policy.model.model.layers
    layers[0].mlp.gate_proj.weight = layers[0].mlp.up_proj.weight
    folder = tmp_path / "model"
    with pytest.raises(ValueError, match=r"the policy cannot be exported .*shared tensors"):
        make_trainer(tmp_path, [ExportPolicy(str(folder))], max_steps=1).fit(module, data)
    assert module.global_step == 0
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_known_before_training(tmp_path, data):
    (tmp_path / "file").touch()
    module = make_module(PRM())
    with pytest.raises(ValueError, match=r"ExportPolicy: folder .* cannot be written: .*file"):
        make_trainer(tmp_path, [ExportPolicy(str(tmp_path / "file" / "model"))], max_steps=1).fit(module, data)
    assert module.global_step == 0


def test_leftovers_that_change_what_is_read_are_noticed(tmp_path, data):
    folder = tmp_path / "model"
    module = make_module(PRM())
    module.configure_model()
    module.policy.save_pretrained(folder)  # the first export is right
    other = make_module(PRM())
    other.configure_model()
    with torch.no_grad():
        other.policy.head_weight.neg_()
    # Another program's adapters lie in the folder: transformers puts them onto whatever model is there.
    adapted = Policy(
        config=other.policy.config,
        tokens=TOKENS,
        lora={"r": 2, "target_modules": "all-linear", "init_lora_weights": False},
    ).load()
    adapted.model.save_pretrained(folder)
    assert (folder / "adapter_config.json").exists()
    with pytest.raises(ValueError, match=r"the exported model .* is not the trained one: its log-probabilities differ"):
        module.policy.save_pretrained(folder)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "model").touch()
    with pytest.raises(ValueError, match="is a file"):
        ExportPolicy(str(tmp_path / "model"))
