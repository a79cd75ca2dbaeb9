"""Chat completions of any endpoint that speaks OpenAI's protocol: text in, text out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Literal

from repirl.rollout.endpoint import Endpoint, Passing

_HALF_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """One answer.

    text: empty where there is none. reasoning: what the endpoint gives apart from the text. model: as the endpoint
    names it. prompt_tokens, completion_tokens: by its account, None where it gives none. attempts: requests it took.
    """

    text: str
    reasoning: str | None
    finish_reason: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    attempts: int


@dataclass
class ChatEndpoint(Endpoint):
    """A model behind `base_url`/chat/completions; further arguments as of `Endpoint`.

    Args:
        model: its name there.
        temperature, top_p, max_tokens: of the sampling; None is not sent.
        max_tokens_field: the name under which max_tokens is sent.
        extra: further fields of the request's body.
    """

    model: str
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        base = self.base_url.rstrip("/")
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        sampling = {"temperature": self.temperature, "top_p": self.top_p, self.max_tokens_field: self.max_tokens}
        given = {name: value for name, value in sampling.items() if value is not None}
        self._body = {"model": self.model, **given, **self.extra}
        if self._key is not None and self._key in json.dumps([self.url, self._body]):
            raise ValueError(f"the key in {self.api_key_env} stands in base_url, model or extra too: take it out there")

    def ask(self, messages: Sequence[Mapping[str, str]]) -> ChatAnswer:
        """One answer to a conversation. Raises as `Endpoint.answer`."""
        found, attempts = self.answer(self.url, {**self._body, "messages": list(messages)}, _answer_of)
        return replace(found, attempts=attempts)

    def advice(self, status: int) -> str:
        """As `Endpoint` says."""
        missing = status == HTTPStatus.NOT_FOUND
        return f"check base_url (often it ends in /v1) and model {self.model!r}" if missing else ""


def _answer_of(body: Any) -> ChatAnswer:
    """The first choice of a reply. Raises Passing where there is none."""
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise Passing("the answer has no choice with a message")
    text = message.get("content")
    if text is not None and not isinstance(text, str):
        raise Passing(f"the answer's content is a {type(text).__name__}, not a text")
    usage = body["usage"] if isinstance(body.get("usage"), dict) else {}
    return ChatAnswer(
        text=_whole(text) or "",
        reasoning=_whole(message.get("reasoning_content") or message.get("reasoning")),
        finish_reason=_whole(choice.get("finish_reason")),
        model=_whole(body.get("model")),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        attempts=1,
    )


def _whole(text: Any) -> str | None:
    """A text that can be written as UTF-8; None where it is none."""
    return _HALF_PAIR.sub("\ufffd", text) if isinstance(text, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
