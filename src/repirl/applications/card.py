"""Model cards of exported folders: method, data, figures where a run has them, and how to load."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from repirl import __version__, checkpoints
from repirl.applications.trained import text_of
from repirl.data.codec import ChatCodec
from repirl.learning.actor import codec_of
from repirl.learning.settings import Text
from repirl.models.export import is_standard
from repirl.models.policy import Policy
from repirl.models.prm import PRM


@dataclass(frozen=True)
class Run:
    """What a checkpoint and its run's folder say of the run.

    described: the checkpoint's description. configuration: the merged one; empty where neither has it. iterations: done.
    figures: the last ones of a validation or test up to the checkpoint, by their names in metrics.csv.
    """

    described: Mapping[str, Any]
    configuration: Mapping[str, Any]
    iterations: int
    figures: Mapping[str, str]

    @property
    def text(self) -> Text | None:
        """How problems became prompts; None where it is not known."""
        return text_of(self.described)


def run_of(content: Mapping[str, Any], checkpoint: Path) -> Run:
    """The run of a checkpoint; its folder, two levels up at most, may have config.yaml and metrics.csv."""
    described, iterations = content.get(checkpoints.DESCRIPTION) or {}, int(content.get("global_step", 0))
    folders = checkpoint.absolute().parents[:2]
    stored = described.get("configuration")
    if stored is None:
        written = [folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()]
        stored = written[0].read_text(encoding="utf-8") if written else ""
    metrics = [folder / "metrics.csv" for folder in folders if (folder / "metrics.csv").is_file()]
    figures = read_figures(metrics[0], iterations) if metrics else {}
    return Run(described, yaml.safe_load(stored) or {}, iterations, figures)


def read_figures(path: Path, iterations: int) -> dict[str, str]:
    """Each `val/` and `test/` figure of a metrics.csv, the last one that is not later than `iterations`."""
    found: dict[str, str] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if float(row.get("step") or 0) <= iterations:
                found |= {name: v for name, v in row.items() if v and name and name.startswith(("val/", "test/"))}
    return found


def policy_card(run: Run, policy: Policy, *, name: str, base: str | None = None) -> str:
    """The card of an exported policy. base: the model that its adapters belong to, where they alone are exported."""
    fields: dict[str, Any] = {"library_name": "peft" if base else "transformers", "pipeline_tag": "text-generation"}
    if base is not None:
        fields["base_model"] = base
    what = "The LoRA adapters of a language model" if base else "A language model"
    load = "AutoModelForCausalLM.from_pretrained(folder)"
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    if base is not None:
        load = f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), folder)"
        imports = f"from peft import PeftModel\n{imports}"
    limit = 1024 if run.text is None else run.text.max_response_tokens
    codec = _codec(run, policy.tokenizer)
    ends = "" if codec is None else f", eos_token_id={list(codec.eos_ids)}"
    use = [
        "import torch",
        imports,
        "",
        f'folder, problem = "{name}", "What is 2 + 3?"',
        f"tokenizer, model = AutoTokenizer.from_pretrained(folder), {load}",
        *prompt_lines(codec),
        f"ids = model.generate(torch.tensor([prompt]), max_new_tokens={limit}{ends})",
        "print(tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True))",
    ]
    rows = _method(run) | _start(run.described.get("policy") or {})
    return _card(fields, name, f"{what}, the policy of a run of repirl {_version(run)}.", rows, run, use)


def prm_card(run: Run, prm: PRM, *, name: str) -> str:
    """The card of an exported PRM."""
    assert prm.backbone is not None
    standard = is_standard(prm)
    codec = _codec(run, prm.backbone.tokenizer)
    trust = "" if standard else ", trust_remote_code=True"
    masked = "" if prm.granularity == "token" else ", response_mask=torch.arange(ids.shape[1])[None] >= len(prompt)"
    use = [
        "import torch",
        "from transformers import AutoModelForTokenClassification, AutoTokenizer",
        "",
        f'folder, problem, solution = "{name}", "What is 2 + 3?", "2 + 3 = 5"',
        f"tokenizer = AutoTokenizer.from_pretrained(folder{trust})",
        f"model = AutoModelForTokenClassification.from_pretrained(folder{trust}).eval()",
        *prompt_lines(codec),
        *response_lines(codec),
        "ids = torch.tensor([prompt + response])",
        "with torch.no_grad():",
        f"    rewards = model(ids{masked}).logits[0, len(prompt) :, 0]  # of each token of the response",
    ]
    rows = _method(run) | {"kind": f"`{prm.kind}`", "granularity": f"`{prm.granularity}`"}
    if (beta := prm.meaning()["beta"]) is not None:
        rows["beta"] = str(beta)
    if run.described.get("base_measure"):
        rows["rewards relative to"] = f"`{run.described['base_measure']}`"
    rows |= _start((run.described.get("prm") or {}).get("backbone") or {})
    what = (
        f"A process reward model of a run of repirl {_version(run)}: a real number for every token of a solution, "
        + (
            "learned from labels of steps. The sigmoid of their sum over a step is the probability that the step is right."
            if _called(run) == "SupervisedPRM"
            else "higher where experts write so. It is no probability, and needs no sigmoid."
        )
    )
    notes = _standard_note(prm) if standard else (
        "The folder's own `modeling_repirl_prm.py` computes the rewards: read it, then load with `trust_remote_code=True`."
    )  # fmt: skip
    fields = {"library_name": "transformers", "pipeline_tag": "token-classification"}
    return _card(fields, name, f"{what}\n\n{notes}", rows, run, use)


def _standard_note(prm: PRM) -> str:
    head: Any = prm.head
    bias = head.score.bias.item()
    note = (
        "It is a class of transformers with one label; programs that apply a sigmoid to one label need that turned off."
    )
    if bias:
        note += (
            f" Its linear layer has a bias, {bias:.6g}, which is part of every token's reward: a program whose layer "
            "has none must add the number."
        )
    return note


def _card(fields: Mapping[str, Any], name: str, what: str, rows: Mapping[str, str], run: Run, use: list[str]) -> str:
    front = yaml.safe_dump({**fields, "tags": ["repirl"]}, sort_keys=False)
    licence = "# license: yours to choose; start model and data may bind you\n"
    table = "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
    code = "\n".join(use)
    parts = [
        f"---\n{front}{licence}---\n\n# {name}\n\n{what}",
        f"## Use\n\n```python\n{code}\n```",
        f"## Method\n\n{table}",
        f"## Data\n\n{_data(run)}",
        f"## Figures\n\n{_figures(run)}",
    ]
    return "\n\n".join(parts) + "\n"


def _method(run: Run) -> dict[str, str]:
    called, given = _called(run), (run.configuration.get("model") or {}).get("init_args") or {}
    rows = {"method": _in_words(run, called, given)} if called else {}
    objective = given.get("objective") or {}
    if run.described.get("prm") and isinstance(objective, Mapping) and objective.get("class_path"):
        rows["PRM objective"] = f"`{objective['class_path']}`"
    return rows | {"iterations": str(run.iterations)}


def _called(run: Run) -> str:
    """The name of the module's class; empty where it is not known."""
    return str((run.configuration.get("model") or {}).get("class_path", "")).rpartition(".")[2]


def _in_words(run: Run, called: str, given: Mapping[str, Any]) -> str:
    """What a module of this class and these arguments does."""
    if called == "SFT":
        return "supervised fine-tuning on the experts' solutions"
    if called == "SupervisedPRM":
        return "cross-entropy of labels of steps, offline"
    if called != "RePIRL":
        return f"`{called}`"
    if not run.described.get("prm"):
        return "policy gradient on outcomes alone, without a process reward model"
    if (given.get("schedule") or {}).get("prm_updates") == 0:
        return "policy gradient with a process reward model that is not trained"
    return "rePIRL (arXiv 2602.07832): policy and process reward model learned in turns"


def _start(described: Mapping[str, Any]) -> dict[str, str]:
    """Where a language model came from."""
    given = described.get("arguments") or {}
    path = given.get("path")
    start = f"`{path}`" if path else f"fresh weights, `{(given.get('config') or {}).get('model_type')}`"
    lora = {} if given.get("lora") is None else {"LoRA": f"`{json.dumps(given['lora'])}`"}
    return {"start": start, "dtype": f"`{given.get('dtype')}`"} | lora


def _data(run: Run) -> str:
    known = run.described.get("data") or {}
    data = (run.configuration.get("data") or {}).get("init_args") or {}
    lines = [f"{known['prompts']} training prompts."] if known.get("prompts") is not None else []
    if isinstance(known.get("solutions"), int):
        lines.append(f"{known['solutions']} training solutions with labelled steps.")
    if train := data.get("train"):
        lines.append(f"```yaml\n{yaml.safe_dump({'train': train}, sort_keys=False).rstrip()}\n```")
    return "\n\n".join(lines) or "The checkpoint does not say it."


def _figures(run: Run) -> str:
    if not run.figures:
        return "None of a validation lie beside the checkpoint."
    rows = [f"| `{name}` | {float(value):.4g} |" for name, value in sorted(run.figures.items())]
    return "\n".join(["| figure | value |", "|---|---|", *rows])


def _version(run: Run) -> str:
    return str(run.described.get("version", __version__))


# ---- words to tokens, as in training ----


def _codec(run: Run, tokenizer: PreTrainedTokenizerBase) -> ChatCodec | None:
    return None if run.text is None else codec_of(tokenizer, run.text)


def prompt_lines(codec: ChatCodec | None) -> list[str]:
    """Code that makes `prompt`, the tokens of `problem`; None = how the run did it is not known."""
    if codec is None:
        return ["prompt = tokenizer(problem).input_ids  # the run's own format is not known"]
    if codec.template == "chat":
        content = "problem" if not codec.instruction else f"problem + {codec.instruction!r}"
        options = "".join(f", {key}={value!r}" for key, value in codec.template_options.items())
        return [
            f'turns = [{{"role": "user", "content": {content}}}]',
            f"prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False{options})",
        ]
    before, after = codec.prompt_format.replace("{instruction}", codec.instruction).split("{problem}")
    written = " + ".join([repr(before)] * bool(before) + ["problem"] + [repr(after)] * bool(after))
    start = f"{list(codec.beginning_ids)} + " if codec.beginning_ids else ""
    return [f"prompt = {start}tokenizer({written}, add_special_tokens=False).input_ids"]


def response_lines(codec: ChatCodec | None) -> list[str]:
    """Code that makes `response`, the tokens of `solution`, the end token included."""
    if codec is None:
        return ["response = tokenizer(solution, add_special_tokens=False).input_ids"]
    cut = f"[{len(codec.anchor_ids)} :]" if codec.anchor_ids else ""
    written = f"{codec.anchor!r} + solution" if codec.anchor else "solution"
    return [f"response = tokenizer({written}, add_special_tokens=False).input_ids{cut} + [{codec.eos_ids[0]}]"]
