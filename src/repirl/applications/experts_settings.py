"""What `repirl generate-experts` is asked for, and whether it goes together."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from repirl.config import ConfigError
from repirl.data.sources import Source
from repirl.learning.settings import Text
from repirl.rollout.endpoint import host_of
from repirl.structs import Generator, Verifier

OF_ENDPOINT = (
    "model",
    "system",
    "top_p",
    "max_tokens",
    "max_tokens_field",
    "extra",
    "api_key_env",
    "concurrent",
    "requests_per_minute",
    "timeout_s",
    "retries",
    "missing",
)
OF_PROCESS = ("rollout", "seed", "problems_at_once", "device")
OF_TEMPLATE = ("template", "prompt_format", "template_options")
SET_BY_US = ("model", "messages", "n", "stream")


@dataclass(frozen=True)
class Experts:
    """What a set of expert solutions is made of.

    Args:
        output: the folder to write.
        problems: where they come from.
        base_url: of an endpoint that speaks OpenAI's protocol, such as https://api.openai.com/v1.
        model: its name at the endpoint.
        policy: in place of an endpoint, a model folder or hub id that answers in this process.
        checkpoint: in place of both, that of a run, whose policy answers.
        text: how problems become prompts, and how long answers may be; what is not given is as the checkpoint says, else the
            default.
            An endpoint gets problem and instruction, in the template of its own.
        system: the system message to an endpoint.
        n: answers a problem.
        keep: `right` takes what the verifier finds right, `all` what is finished, with the verdict in the field `right`.
        verifier: of answers; None = repirl.verifiers.math.MathVerifier.
        guard: sets by name that no problem may be in.
        contaminated: `drop` leaves such problems out, `mark` names the set in the field `contaminated`.
        temperature: of what is sampled; None = as the endpoint likes, in this process 1.
        top_p: of an endpoint's sampling; None = as it likes.
        max_tokens: of an endpoint's answer; None = text.max_response_tokens.
        max_tokens_field: the name under which the endpoint reads it.
        extra: further fields of a request's body, such as {reasoning_effort: high}.
        api_key_env: the environment variable that holds the key; where it is not set, none is sent.
        concurrent: requests under way at a time.
        requests_per_minute: attempts included; None = any number.
        timeout_s: of one attempt.
        retries: attempts after the first, where a failure may pass.
        missing: `refuse` writes no set while answers are missing, `accept` does without them.
        price_prompt: of a million prompt tokens; None = unknown.
        price_completion: of a million tokens answered.
        rollout: the sampler of a policy; None = in this process.
        seed: of what a policy samples.
        problems_at_once: problems between two writes, of a policy.
        device: where a policy runs.
    """

    output: str
    problems: Source
    base_url: str | None = None
    model: str | None = None
    policy: str | None = None
    checkpoint: str | None = None
    text: Text | None = None
    system: str | None = None
    n: int = 4
    keep: Literal["right", "all"] = "right"
    verifier: Verifier | None = None
    guard: dict[str, Source | None] | None = None
    contaminated: Literal["drop", "mark"] = "drop"
    temperature: float | None = 1.0
    top_p: float | None = None
    max_tokens: int | None = None
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra: dict[str, Any] = field(default_factory=dict)
    api_key_env: str = "OPENAI_API_KEY"
    concurrent: int = 8
    requests_per_minute: float | None = None
    timeout_s: float = 600.0
    retries: int = 8
    missing: Literal["refuse", "accept"] = "refuse"
    price_prompt: float | None = None
    price_completion: float | None = None
    rollout: Generator | None = None
    seed: int = 0
    problems_at_once: int = 16
    device: str = "cpu"

    def check(self) -> None:
        """Raises ConfigError where settings do not go together."""
        sources = [name for name in ("base_url", "policy", "checkpoint") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise ConfigError(
                f"answers come from one of base_url, policy and checkpoint, and there is {' and '.join(sources) or 'none'}",
                "give --base_url URL --model NAME, --policy FOLDER, or --checkpoint RUN.ckpt",
            )
        if self.base_url is None:
            self._refuse(OF_ENDPOINT, "belongs to an endpoint (base_url)")
        else:
            self._refuse(OF_PROCESS, "belongs to a policy in this process")
            self._check_endpoint(self.base_url)
        self._check_numbers()

    def _refuse(self, names: tuple[str, ...], why: str) -> None:
        defaults: dict[str, Any] = {one.name: {} if one.name == "extra" else one.default for one in fields(self)}
        if changed := [name for name in names if getattr(self, name) != defaults[name]]:
            raise ConfigError(f"{changed[0]}: it {why}, and {sources_word(self)} answers", f"leave {changed[0]} out")

    def _check_endpoint(self, base_url: str) -> None:
        try:
            host_of(base_url)
        except ValueError as error:
            raise ConfigError(str(error), "no request was sent") from error
        if not self.model:
            raise ConfigError("model: there is none", "give --model, the model's name at the endpoint")
        if taken := [name for name in SET_BY_US if name in self.extra]:
            raise ConfigError(f"extra: {taken[0]!r} is set by this program", "leave it out of extra")
        text, usual = self.text or Text(), Text()
        if changed := [name for name in OF_TEMPLATE if getattr(text, name) != getattr(usual, name)]:
            raise ConfigError(
                f"text.{changed[0]}: the endpoint has a template of its own", f"leave {changed[0]} out of text"
            )

    def _check_numbers(self) -> None:
        least = {"n": 1, "concurrent": 1, "problems_at_once": 1, "retries": 0}
        optional = {"price_prompt": 0, "price_completion": 0, "temperature": 0, "max_tokens": 1}
        least |= {name: bound for name, bound in optional.items() if getattr(self, name) is not None}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ConfigError(f"{name}: {getattr(self, name)} is below {bound}", f"give a number from {bound}")
        for name in ("timeout_s", "requests_per_minute", "top_p"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name}: {value} is not above 0", "give a number above 0")
        if self.temperature == 0 and self.n > 1:
            raise ConfigError(
                f"temperature: 0 gives one answer again and again, and n is {self.n}", "give one above 0, or --n=1"
            )


def sources_word(asked: Experts) -> str:
    """What answers, in a word."""
    return "an endpoint" if asked.base_url is not None else "a policy" if asked.policy else "a checkpoint's policy"
