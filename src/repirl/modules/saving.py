"""What a module's checkpoints hold beside Lightning's part, and what is checked before one is written or used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.tensor import DTensor

from repirl import __version__, checkpoints
from repirl.data.collate import collate_rows
from repirl.distributed import rank, together, world_size

if TYPE_CHECKING:
    from repirl.models.prm import PRM
    from repirl.modules.base import RunModule


class SafeCheckpointIO(TorchCheckpointIO):
    """Files as `repirl.checkpoints` writes and reads them; what is not on a local disk, as Lightning does.

    saved: the newest file that this run has written and can go on from, None before. saved_at: its iteration.
    """

    saved: Path | None = None
    saved_at: int | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes it whole or not at all. Raises FloatingPointError where a weight is not finite, OSError by the disk."""
        require_finite_weights(checkpoint["state_dict"], int(checkpoint["global_step"]))
        if _is_local(path):
            checkpoints.write(checkpoint, Path(path))
            if "optimizer_states" in checkpoint:
                self.saved, self.saved_at = Path(path), int(checkpoint["global_step"])
            checkpoints.remove_parts(Path(path), keep=checkpoint.get(checkpoints.PARTS, {}).get("folder"))
        else:
            super().save_checkpoint(checkpoint, path, storage_options)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes it with its parts."""
        super().remove_checkpoint(path)
        if _is_local(path):
            checkpoints.remove_parts(Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content on the CPU; never more than tensors and plain values. Raises ValueError, naming the file."""
        if _is_local(path):
            return checkpoints.read(Path(path))
        return super().load_checkpoint(path, weights_only=True)


def write_in_parts(
    checkpoint: dict[str, Any],
    path: Any,
    folder: str,
    write: Callable[[dict[str, Any], Path], None],
    device: torch.device,
) -> None:
    """Every process writes its parts of a checkpoint, then the first one, by `write`, the checkpoint itself.

    All must call it, and all raise where one cannot write or has a weight that is not finite; the checkpoint before stays.
    """
    if not _is_local(path):
        raise ValueError(f"checkpoint {str(path)!r}: sharded_checkpoints needs a folder on a disk; set it to false")
    index, parts = checkpoints.parted(checkpoint)
    weights = {n: v.to_local() if isinstance(v, DTensor) else v for n, v in checkpoint["state_dict"].items()}
    index[checkpoints.PARTS] = {"folder": folder, "count": world_size()}
    try:
        with together(device):
            require_finite_weights(weights, int(checkpoint["global_step"]))
            checkpoints.write_parts(parts, Path(path), folder, rank())
    except Exception:  # no checkpoint names the folder yet
        checkpoints.remove_unused_parts(Path(path), folder)
        raise
    with together(device):
        write(index, Path(path))


def _is_local(path: Any) -> bool:
    return "://" not in os.fspath(path)


def use_safe_files(trainer: Trainer) -> None:
    """Has the trainer write and read its checkpoints so; a plugin that the user has chosen stays."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = SafeCheckpointIO()


def newest_checkpoint(trainer: Trainer) -> Path | None:
    """The file that a stopped run can go on from: the newest it wrote, else the one it came from."""
    files = trainer.strategy.checkpoint_io
    written = files.saved if isinstance(files, SafeCheckpointIO) else None
    return written or (Path(trainer.ckpt_path) if trainer.ckpt_path else None)


# ---- what is written ----


def description(module: RunModule) -> dict[str, Any]:
    """What the weights mean and how they came about.

    version: of repirl. policy, prm: what rebuilds each (models/); None without one. base_measure: what the PRM's rewards
    are relative to. text: how problems became prompts (learning/settings.py).
    configuration: the merged one as YAML, where the command line built the module. data: digests of the training set
    (data/fingerprint.py).
    """
    policy, prm = getattr(module, "policy", None), getattr(module, "prm", None)
    state: dict[str, Any] = getattr(module.trainer.datamodule, "state_dict", dict)()  # type: ignore[attr-defined]
    return {
        "version": __version__,
        "policy": None if policy is None else policy.description(),
        "prm": None if prm is None else prm.description(),
        "base_measure": base_measure(module),
        "text": asdict(module.text),
        "configuration": module.configuration,
        "data": state.get("training_set"),
    }


def base_measure(module: RunModule) -> str | None:
    """What the PRM's rewards are relative to; None where they are not, or there is none."""
    objective = getattr(module, "objective", None)
    if objective is None or getattr(module, "prm", None) is None:
        return None
    return "reference" if objective.needs_reference else "uniform" if objective.needs_log_probs else None


def require_finite_weights(weights: Mapping[str, Any], iteration: int) -> None:
    """Raises FloatingPointError, naming the weight, where one is NaN or infinite."""
    for name, value in weights.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            raise FloatingPointError(
                f"iteration {iteration}: the weight {name!r} is NaN or infinite; no checkpoint was written of it. "
                "Lower the learning rate"
            )


@torch.no_grad()
def require_working(module: RunModule) -> None:
    """Raises FloatingPointError where policy or PRM say NaN or infinity of four fixed tokens: finite weights may do so."""
    policy, prm = getattr(module, "policy", None), getattr(module, "prm", None)
    language_model = policy or cast("PRM", prm).backbone
    assert language_model is not None
    ids = [i % language_model.vocabulary_size for i in range(4)]
    rows = collate_rows([ids[:2]], [ids[2:]], module.codec.pad_id, module.device)
    said = {} if policy is None else {"policy's log-probability": policy(rows)[0]}
    if prm is not None:
        said["PRM's reward"] = prm(rows)
    for what, values in said.items():
        if not bool(values.isfinite().all()):
            raise FloatingPointError(
                f"iteration {module.global_step}: the {what} is NaN or infinite with the present weights, though they are "
                "finite; no checkpoint was written of them. Lower the learning rate"
            )


# ---- what is read ----


def check_checkpoint(module: RunModule, checkpoint: Mapping[str, Any]) -> None:
    """Raises ValueError where the checkpoint's weights cannot become the module's, or mean something else.

    A module is compared before any weight is copied. Checkpoints without a description (of other programs) are compared
    by names and shapes alone.
    """
    training = module.trainer.state.fn == TrainerFn.FITTING
    where = f"checkpoint {str(module.trainer.ckpt_path)!r}"
    if training and "optimizer_states" not in checkpoint:
        raise ValueError(
            f"{where} holds weights alone (save_weights_only): `fit` cannot go on from it. Give one that holds everything, "
            "or start a new run from the weights"
        )
    stored, prm, own = checkpoint.get(checkpoints.DESCRIPTION) or {}, getattr(module, "prm", None), base_measure(module)
    if training and prm is not None:
        require_base_measure(stored.get("base_measure"), own, where)
    require_fitting(module, checkpoint, where)


def require_base_measure(stored: str | None, own: str | None, where: str) -> None:
    """Raises ValueError where the stored PRM's rewards are relative to another base measure; `where` names it."""
    if stored is not None and stored != own:
        raise ValueError(
            f"{where}: its PRM's rewards are relative to base_measure {stored!r}, this run has {own!r}; "
            f"set model.objective.base_measure={stored}, or start a new run"
        )


def require_fitting(module: RunModule, checkpoint: Mapping[str, Any], where: str) -> None:
    """Raises ValueError where the weights are of other names or shapes, or would be other rewards; `where` names them."""
    stored, prm = checkpoint.get(checkpoints.DESCRIPTION) or {}, getattr(module, "prm", None)
    if stored.get("prm") is not None and prm is not None:
        prm.require_same_meaning(stored["prm"], where)
    _check_shapes(module.state_dict(), checkpoint["state_dict"], where)


def _check_shapes(own: Mapping[str, Any], stored: Mapping[str, Any], where: str) -> None:
    """Raises ValueError, with the first of the differences, where names or shapes differ."""
    missing, unknown = [n for n in own if n not in stored], [n for n in stored if n not in own]
    if any(name.startswith("prm.") for name in missing) != any(name.startswith("prm.") for name in unknown):
        here, there = "this configuration", "the checkpoint"
        has, has_not = (here, there) if any(n.startswith("prm.") for n in missing) else (there, here)
        if not any(name.startswith("prm.") for name in (stored if has_not == there else own)):
            raise ValueError(
                f"{where}: {has} has a PRM and {has_not} has none; set model.prm as it was when the checkpoint was saved"
            )
    shapes = {n: (stored[n].shape, own[n].shape) for n in own if n in stored and stored[n].shape != own[n].shape}
    for count, names, what in (
        (len(shapes), list(shapes), "have another shape"),
        (len(missing), missing, "are missing in it"),
        (len(unknown), unknown, "are not in this model"),
    ):
        if count:
            sizes = (
                f" ({list(shapes[names[0]][0])} in it, {list(shapes[names[0]][1])} here)" if names[0] in shapes else ""
            )
            lora = " (another LoRA rank)" if "lora" in names[0] and sizes else ""
            raise ValueError(
                f"{where} does not fit: {count} weights {what}, the first is {names[0]!r}{sizes}{lora}. Give the model, "
                "LoRA and PRM settings with which it was saved"
            )
