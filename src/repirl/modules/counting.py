"""Iterations as Lightning's steps. The names used here are private: pyproject.toml admits one minor version of Lightning."""

from lightning.pytorch import Trainer


def uncount_optimizer_steps(trainer: Trainer) -> None:
    """Keeps Lightning from counting every optimiser step as a global step."""
    for optimizer in trainer.strategy._lightning_optimizers:
        optimizer._on_before_step = optimizer._on_after_step = _do_nothing


def count_iteration(trainer: Trainer) -> None:
    """Counts one global step."""
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    progress.increment_ready()
    progress.increment_completed()


def forget_figures(trainer: Trainer) -> None:
    """Forgets what the iteration before logged: Lightning would log it again for a figure that this one does not measure."""
    figures = trainer.fit_loop.epoch_loop._results
    figures.reset(metrics=False, fx="training_step")


def _do_nothing() -> None:
    """In place of Lightning's step counters."""
