"""`repirl generate-experts` against vLLM's own OpenAI server, and the same model asked in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from repirl.__main__ import main
from repirl.models.policy import Policy
from tests.models.tiny import LLAMA
from tests.modules.tiny import TOKENS
from tests.vllm.engines import HEADS, needs_vllm
from tests.vllm.servers import vllm_server

ROWS = [{"id": f"p{n}", "problem": text, "answer": "b8"} for n, text in enumerate(["a3b5", "a1b1c2", "d9"])]
PLAIN = (
    "{% for message in messages %}{{ message.content }}{{ '\n' }}{% endfor %}"  # the template `plain` of this process
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    policy = Policy(config=LLAMA | HEADS, tokens=TOKENS, init_seed=1).load()
    policy.model.save_pretrained(tmp_path / "model")
    policy.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def url(model: Path, tmp_path: Path) -> Iterator[str]:
    (tmp_path / "plain.jinja").write_text(PLAIN)
    words = ["--max-model-len", "64", "--served-model-name", "tiny", "--api-key", "sk-of-the-server"]
    words += ["--chat-template", str(tmp_path / "plain.jinja")]
    with vllm_server(model, tmp_path / "server.log", *words) as address:
        yield f"{address}/v1"


@needs_vllm
def test_an_endpoint_answers_as_the_model_does_here(
    url: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Greedily: the same words, token counts of the engine's own. A wrong key and a wrong name are told at once."""
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    common = {
        "problems": {"class_path": "repirl.data.sources.Table", "init_args": {"path": str(problems)}},
        "verifier": {"class_path": "repirl.verifiers.exact.ExactVerifier"},
        "temperature": 0.0,
        "n": 1,
        "keep": "all",
        "text": {"max_prompt_tokens": 16, "max_response_tokens": 12},
    }
    answers = {}
    for name, source in (("endpoint", {"base_url": url, "model": "tiny"}), ("here", {"policy": str(model)})):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(common | source | {"output": str(tmp_path / name)}))
        if name == "endpoint":
            for key, words, status in (
                ("sk-other", [], "HTTP 401"),
                ("sk-of-the-server", ["--model=other"], "HTTP 404"),
            ):
                monkeypatch.setenv("OPENAI_API_KEY", key)
                with pytest.raises(SystemExit):
                    main(["generate-experts", "-c", str(path), *words])
                assert status in (told := capsys.readouterr().err)
                assert key not in told
        main(["generate-experts", "-c", str(path)])
        answers[name] = [json.loads(line) for line in (tmp_path / name / "answers.jsonl").read_text().splitlines()]
    assert len(answers["endpoint"]) == 3
    for served, own in zip(answers["endpoint"], answers["here"], strict=True):
        assert (served["id"], served["text"], served["finish_reason"]) == (own["id"], own["text"], own["finish_reason"])
        assert served["completion_tokens"] == own["completion_tokens"]
    assert [one["prompt_tokens"] for one in answers["endpoint"]] == [5, 7, 3]
    assert any(one["text"] for one in answers["endpoint"])
