"""PRMs of others on tiny random models, against tokens and probabilities that each test works out for itself.

Places are looked up by token id in the whole text, as the models' own loaders do; there the separator's text is written into
the solution, here its id is appended.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

import repirl
from repirl.learning.settings import Text
from repirl.models.hub import KINDS
from repirl.models.hub.base import HubPRM
from repirl.structs import WrittenSolution
from tests.data.tokenizers_of_kinds import LINES, byte_level, metaspace, with_tokens

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
    "use_cache": False,
}
PROBLEM = "What is 2 + 3?"
STEPS = ("Then add 2 and 3.\n\n", "2 + 3 = 5\n\n", "The answer is 5.")
BARE = [step.strip() for step in STEPS]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = with_tokens(byte_level(), "<|im_start|>", "<|im_end|>", "<extra_0>", special=True)
    tokenizer.chat_template = CHAT
    return tokenizer


def as_read(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """Saved beside a model, and read again: transformers may take another class, by the type of the model."""
    tokenizer.save_pretrained(folder)
    read: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return read


def config_of(model_type: str, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> Any:
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return AutoConfig.for_model(model_type, vocab_size=len(tokenizer) + 4, **SIZES | ids | changes)


def made(auto: Any, config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return auto.from_config(config).eval()


def implicit_pair(folder: Path) -> tuple[str, str]:
    """A PRM of kind implicit: two tiny causal LMs in folders of their own."""
    tokenizer = chat_tokenizer()
    for seed, name in enumerate(("tuned", "start")):
        made(AutoModelForCausalLM, config_of("qwen2", tokenizer), seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return str(folder / "tuned"), str(folder / "start")


def with_head(folder: Path, decoder: nn.Module, head: dict[str, Tensor], architecture: str) -> None:
    """A folder as the model's own class would have written it: decoder under `model.`, and a head."""
    decoder.save_pretrained(folder)  # type: ignore[operator]
    weights = {f"model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights | head, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))


def check(folder: Path, expected: list[float], kind: str | None = None, **options: Any) -> Any:
    """Alone, in a batch beside others, and in batches of one."""
    scorer = repirl.load_prm(folder, kind, **options)
    assert len(expected) == 3
    assert len({round(value, 4) for value in expected}) == 3, "rewards that are the same would show nothing"
    assert scorer.score(PROBLEM, STEPS).step_rewards == pytest.approx(expected, abs=1e-5)
    several = [
        WrittenSolution(PROBLEM, STEPS[:1]),
        WrittenSolution(PROBLEM, STEPS),
        WrittenSolution("What?", STEPS[1:]),
    ]
    together = scorer.step_rewards(several)
    assert [len(rewards) for rewards in together] == [1, 3, 2]
    assert together[1] == pytest.approx(expected, abs=1e-5)
    assert together[0] == pytest.approx(expected[:1], abs=1e-5)  # causal: what follows does not matter
    again = repirl.load_prm(folder, kind, batch_tokens=1, **options).step_rewards(several)
    for one, other in zip(again, together, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    return scorer


def test_qwen_math(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    decoder = made(AutoModel, config_of("qwen2", tokenizer))
    head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    with_head(tmp_path, decoder, {f"score.{k}": v for k, v in head.state_dict().items()}, "Qwen2ForProcessRewardModel")
    tokenizer = as_read(tokenizer, tmp_path)
    text = (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        f"<|im_start|>user\n{PROBLEM}<|im_end|>\n<|im_start|>assistant\n"
        + "<extra_0>".join(BARE) + "<extra_0><|im_end|>\n"
    )  # fmt: skip
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        probabilities = head(decoder(ids).last_hidden_state).softmax(-1)[0, :, 1]
    expected = probabilities[ids[0] == tokenizer.convert_tokens_to_ids("<extra_0>")].tolist()
    scorer = check(tmp_path, expected)
    assert scorer.context == 256
    assert scorer.score(PROBLEM, STEPS).tokens == ()
    with pytest.raises(ValueError, match="special token '<extra_0>' stands in 'a<extra_0>b'"):
        scorer.score(PROBLEM, ["a<extra_0>b"])


def test_math_shepherd(tmp_path: Path) -> None:
    tokenizer = metaspace("always", lines=[*LINES, *["Step 1: a ки", "Step 2: - ки", "Step 3: + - ки"] * 50])
    model = made(AutoModelForCausalLM, config_of("mistral", tokenizer, sliding_window=None))
    model.save_pretrained(tmp_path)
    tokenizer = as_read(tokenizer, tmp_path)
    text = f"{PROBLEM} " + "".join(f"Step {k}: {step} ки\n" for k, step in enumerate(BARE, start=1))
    text_ids = tokenizer(text)["input_ids"]
    tag, plus, minus = (tokenizer(t, add_special_tokens=False)["input_ids"][-1] for t in ("ки", "+", "-"))
    assert tokenizer.convert_ids_to_tokens([tag, plus, minus]) == ["▁ки", "▁+", "▁-"]
    assert text_ids.count(tag) == 3, "the text's own tags are the token that is appended"
    ids = torch.tensor([text_ids])
    with torch.no_grad():
        logits = model(ids).logits[0]
    expected = [float(torch.softmax(row[[plus, minus]], 0)[0]) for row in logits[ids[0] == tag]]
    check(tmp_path, expected, "math_shepherd")
    numbered = repirl.load_prm(tmp_path, "math_shepherd").score(PROBLEM, [f"Step 1: {BARE[0]}"])
    assert numbered.step_rewards == pytest.approx(expected[:1], abs=1e-5)
    with pytest.raises(ValueError, match=r"MistralForCausalLM.* does not tell its kind: give `kind`, one of qwen_math"):
        repirl.load_prm(tmp_path)


def test_skywork(tmp_path: Path) -> None:
    tokenizer = byte_level()
    decoder = made(AutoModel, config_of("qwen2", tokenizer))
    head = nn.Linear(16, 1)
    weights = {f"v_head.summary.{k}": v for k, v in head.state_dict().items()}
    with_head(tmp_path, decoder, weights, "Qwen2ForPrmModel")
    tokenizer = as_read(tokenizer, tmp_path)
    ids = tokenizer(f"<s>{PROBLEM}\n")["input_ids"]
    places = []
    for step in BARE:
        ids += [*tokenizer(step)["input_ids"], tokenizer("\n")["input_ids"][-1]]
        places.append(len(ids) - 1)
    with torch.no_grad():
        states = decoder(torch.tensor([ids])).last_hidden_state[0]
        expected = head(states[places])[:, 0].sigmoid().tolist()
    check(tmp_path, expected)


def test_rlhflow(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    model = made(AutoModelForCausalLM, config_of("llama", tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer = as_read(tokenizer, tmp_path)
    turns: list[dict[str, str]] = []
    expected = []
    plus, minus = tokenizer("+")["input_ids"][-1], tokenizer("-")["input_ids"][-1]
    for k, step in enumerate(BARE):
        turns += [
            {"role": "user", "content": f"{PROBLEM} {step}" if k == 0 else step},
            {"role": "assistant", "content": "+"},
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer(text)["input_ids"]
        # The end is "+", the end of the turn and a newline: "+" is said by the fourth token from the end.
        assert ids[-3:] == [plus, tokenizer.convert_tokens_to_ids("<|im_end|>"), *tokenizer("\n")["input_ids"]]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -4]
        expected.append(float(torch.softmax(logits[[plus, minus]], 0)[0]))
    check(tmp_path, expected, "rlhflow")


@pytest.mark.parametrize("bias", [True, False])
def test_reasoneval(bias: bool, tmp_path: Path) -> None:
    tokenizer = metaspace("always")
    decoder = made(AutoModel, config_of("mistral", tokenizer, sliding_window=None))
    head = nn.Linear(16, 3, bias=bias)
    with_head(tmp_path, decoder, {f"score_head.{k}": v for k, v in head.state_dict().items()}, "ReasonEval_7B")
    tokenizer = as_read(tokenizer, tmp_path)
    ids = tokenizer(f"Question:\n{PROBLEM}\nAnswer:\nLet's think step by step.\n")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    places = []
    for step in BARE:
        ids += tokenizer(step, add_special_tokens=False)["input_ids"]
        places.append(len(ids) - 1)
    with torch.no_grad():
        wrong, neutral, right = head(decoder(torch.tensor([ids])).last_hidden_state[0, places]).softmax(-1).T
    check(tmp_path, (neutral + right).tolist())
    assert (1 - wrong).tolist() == pytest.approx((neutral + right).tolist(), abs=1e-6)


@pytest.mark.parametrize("kind", [None, "pure"])
def test_token_classification(kind: str | None, tmp_path: Path) -> None:
    tokenizer = byte_level()
    model = made(AutoModelForTokenClassification, config_of("qwen2", tokenizer, num_labels=2, classifier_dropout=0.0))
    model.save_pretrained(tmp_path)
    tokenizer = as_read(tokenizer, tmp_path)
    ids = [tokenizer.bos_token_id, *tokenizer(PROBLEM)["input_ids"]]
    places = []
    for step in BARE:
        ids += [*tokenizer(step)["input_ids"], *tokenizer("\n")["input_ids"]]
        places.append(len(ids) - 1)
    with torch.no_grad():
        wrong, right = model(torch.tensor([ids])).logits[0, places].softmax(-1).T
    check(tmp_path, (right - wrong if kind == "pure" else right).tolist(), kind)


def test_three_classes_are_no_trl_prm(tmp_path: Path) -> None:
    model = made(AutoModelForTokenClassification, config_of("qwen2", byte_level(), num_labels=3))
    model.save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="3 classes: a PRM of this kind has 2"):
        repirl.load_prm(tmp_path)


def test_generative(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    model = made(AutoModelForCausalLM, config_of("qwen2", tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer = as_read(tokenizer, tmp_path)
    yes, no = tokenizer("Yes")["input_ids"][0], tokenizer("No")["input_ids"][0]
    assert yes != no
    expected, read = [], 0
    for count in (1, 2, 3):
        asked = (
            f"{PROBLEM}\n\nHere is a solution, up to one of its steps:\n\n" + "\n\n".join(BARE[:count])
            + "\n\nIs the last of these steps correct (Yes/No)? Answer with one word."
        )  # fmt: skip
        ids = tokenizer(f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        expected.append(float(torch.softmax(logits[[yes, no]], 0)[0]))
        read += len(ids)
    scorer = check(tmp_path, expected, "generative")
    solution = WrittenSolution(PROBLEM, STEPS)
    assert scorer.tokens_read([solution]) == [read]  # a question a step
    assert scorer.lengths([solution]) == [len(ids)]
    assert scorer.parameters == sum(p.numel() for p in model.base_model.parameters())


def test_implicit(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    models = [made(AutoModelForCausalLM, config_of("qwen2", tokenizer), seed) for seed in (0, 1)]
    for name, model in zip(("tuned", "start"), models, strict=True):
        model.save_pretrained(tmp_path / name)
        read = as_read(tokenizer, tmp_path / name)
    tokenizer = read
    prompt = tokenizer(f"<|im_start|>user\n{PROBLEM}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    steps = [tokenizer(step)["input_ids"] for step in STEPS]
    end = [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    response = tokenizer("".join(STEPS))["input_ids"] + end
    assert response == [token for step in steps for token in step] + end
    ids = torch.tensor([prompt + response])
    with torch.no_grad():
        tuned, start = (
            model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
            for model in models
        )
    lengths = [len(steps[0]), len(steps[1]), len(steps[2]) + 1]
    expected = [float(part.sum()) for part in (0.05 * (tuned - start)).split(lengths)]
    options = {"reference": str(tmp_path / "start"), "beta": 0.05}
    scorer = repirl.load_prm(tmp_path / "tuned", "implicit", **options)
    score = scorer.score(PROBLEM, STEPS)
    assert score.step_rewards == pytest.approx(expected, abs=1e-5)
    assert score.token_rewards == pytest.approx((0.05 * (tuned - start)).tolist(), abs=1e-5)
    assert repirl.load_prm(tmp_path / "tuned", "implicit", reference=options["reference"]).score(
        PROBLEM, STEPS
    ).step_rewards == pytest.approx([value / 0.05 for value in expected], abs=1e-4)  # a beta of 1
    for kind, reference in (("implicit", None), ("trl", "start")):
        with pytest.raises(ValueError, match="is two models, and no other is"):
            repirl.load_prm(tmp_path / "tuned", kind, reference=reference)


def test_the_prompts_of_implicit_are_as_its_folder_says(tmp_path: Path) -> None:
    tuned, start = implicit_pair(tmp_path)
    load = partial(repirl.load_prm, tuned, "implicit", reference=start)
    chat, plain = (load(text=Text(template=one)).score(PROBLEM, STEPS).step_rewards for one in ("chat", "plain"))
    assert load().score(PROBLEM, STEPS).step_rewards == chat != plain
    (tmp_path / "tuned" / "repirl_text.json").write_text('{"template": "plain"}')
    assert load().score(PROBLEM, STEPS).step_rewards == plain
    assert load(text=Text(template="chat")).score(PROBLEM, STEPS).step_rewards == chat
    for wrong in ('{"tempalte": "plain"}', "plain"):
        (tmp_path / "tuned" / "repirl_text.json").write_text(wrong)
        with pytest.raises(
            ValueError, match=r"repirl_text\.json' is not the JSON of settings of model\.text: .*repair it"
        ):
            load()


def test_what_would_do_nothing_is_refused(tmp_path: Path) -> None:
    made(AutoModelForTokenClassification, config_of("qwen2", byte_level(), num_labels=2)).save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    for kind in (None, "trl"):
        with pytest.raises(ValueError, match=r"beta 0\.5 is of a PRM of kind 'implicit', .* leave it out"):
            repirl.load_prm(tmp_path, kind, beta=0.5)
        with pytest.raises(ValueError, match="kind 'trl' has a form of its own for problems: leave `text` out"):
            repirl.load_prm(tmp_path, kind, text=Text())
        assert repirl.load_prm(tmp_path, kind).score(PROBLEM, STEPS).step_rewards


def test_unknown_kinds_and_missing_heads(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"kind 'orm' of a PRM is none of qwen_math, .*, implicit"):
        repirl.load_prm(tmp_path, "orm")
    made(AutoModelForCausalLM, config_of("qwen2", byte_level())).save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no weights 'v_head\.summary\.': it is a PRM of another kind"):
        repirl.load_prm(tmp_path, "skywork")
    with pytest.raises(ValueError, match="needs a tokenizer with a chat template"):
        repirl.load_prm(tmp_path, "generative").score(PROBLEM, STEPS)
    with pytest.raises(ValueError, match=r"PRM '.*' cannot be read"):
        repirl.load_prm(tmp_path / "none", "rlhflow")
    assert all(issubclass(kind, HubPRM) for kind in KINDS.values())
