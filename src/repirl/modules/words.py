"""What a run is about to do, in words: one vocabulary for the numbers that settings make together."""

from repirl.data.codec import ChatCodec
from repirl.learning.alternation import Alternation


def iteration_in_words(learning: Alternation, prompts: int | None, processes: int) -> str:
    """Rollouts and optimiser steps of an iteration, over all processes.

    prompts: of an iteration; None where the data module does not say.
    """
    schedule, samples = learning.schedule, learning.samples
    rollouts = f"{samples} rollouts a prompt" if prompts is None else f"{prompts} prompts x {samples} rollouts"
    total = "" if prompts is None else f" = {prompts * samples} responses"
    steps = {"policy": schedule.policy_steps}
    if learning.prm_learner is not None:
        steps["PRM"] = schedule.prm_updates * schedule.prm_mini_batches
    taken = ", ".join(f"{count} {name} step{'s' * (count != 1)}" for name, count in steps.items())
    return f"an iteration: {rollouts}{total} on {processes} process{'es' * (processes != 1)}, then {taken}"


def prompts_in_words(codec: ChatCodec) -> str:
    """How a problem becomes a prompt."""
    if codec.template == "chat":
        return "prompts: by the tokenizer's chat template"
    return f"prompts: problem and instruction as {codec.prompt_format!r}, no chat template"
