"""A PRM trained from SmolLM2-135M on flawed twins, measured on ProcessBench and within the generators of GSM8K solutions.

    python benchmarks/process_bench.py --data FOLDER                 # about three hours of one core
    python benchmarks/process_bench.py --data FOLDER --sft           # its rival by imitation: over an hour
    python benchmarks/process_bench.py --data FOLDER --reduced       # does it run; also with --sft

FOLDER has math/gsm8k_train.jsonl.gz and math/math_train12k.jsonl.gz (problem, solution), prm/processbench_*.jsonl (ids,
steps, first_error) and traces/gsm8k_model_solutions.jsonl.gz (steps, is_correct, generator). No problem of the evaluation is
trained on: of MATH the rows of math/train alone are taken, and the training run reports what overlaps.

1. Every other solution of GSM8K's and MATH's training sets is replaced by its flawed twin: a number, an operator or a step
   changed (data/flawed.py). GSM8K's steps are lines, MATH's are sentences. Labels go up to the first error.
2. `repirl fit -c configs/prm/step_labels.yaml` on SmolLM2 with LoRA; validation on further training problems.
3. `repirl evaluate-prm` on the four parts, threshold chosen on the GSM8K part. F1 is computed again here, in plain Python.
4. `repirl score` on model-written GSM8K solutions: AUROC of right against wrong, within each generator, beside length.

With --sft: no label is read. The same model with the same LoRA, rate, steps and batches imitates the solutions of 1. without
the errors, and `log pi_SFT - log pi_start`, summed over a step's tokens, is the PRM (kind `implicit`) on the GSM8K part.

Settings were fixed before the run; nothing was tuned on what is evaluated. Finished parts are kept. Written to
<output>/process_bench.json, or process_bench_sft.json, and printed as Markdown.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import table
from benchmarks.workloads import SMOLLM2

from repirl.__main__ import main as repirl
from repirl.applications.processes import Processes
from repirl.data.flawed import flawed_twin
from repirl.data.tables import read_jsonl
from repirl.metrics.accumulate import AUROCWithin
from repirl.structs import WrittenSolution

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    "gsm8k": "processbench_gsm8k.jsonl",
    "math": "processbench_math.jsonl",
    "olympiadbench": "processbench_olympiadbench_part.jsonl",
    "omnimath": "processbench_omnimath_part.jsonl",
}
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z$\\])")
LONGEST = 500  # characters of a training solution, and of its problem
KINDS = ("number", "operator", "step")
REWARDS = ("mean", "min", "last", "sum")
FULL = {"gsm8k": 1000, "math": 400, "held_out": 100, "steps": 80, "every": 20, "limit": None, "traced": 400}
REDUCED = {"gsm8k": 24, "math": 8, "held_out": 8, "steps": 2, "every": 1, "limit": 2, "traced": 2}
BATCH = 16
LORA = {  # the upper half of 30 layers: the backward pass, most of the time, ends where nothing below is trained
    "r": 32,
    "lora_alpha": 64,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "layers_to_transform": list(range(15, 30)),
}


# ---- training set ----


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a .jsonl or .jsonl.gz file."""
    for _, row in read_jsonl(path):
        yield dict(row)


def solutions(path: Path, wanted: str) -> list[WrittenSolution]:
    """Of the rows whose id begins so, as steps: lines, or the sentences of a solution of one paragraph."""
    found = []
    for row in rows(path):
        text = row["solution"].strip()
        if not str(row["id"]).startswith(wanted) or max(len(text), len(row["problem"])) > LONGEST:
            continue
        steps = [step.strip() for step in (SENTENCE.split(text) if wanted.startswith("math") else text.split("\n"))]
        steps = [step for step in steps if step]
        if len(steps) > 1:
            found.append(WrittenSolution(row["problem"], (*(f"{step}\n" for step in steps[:-1]), steps[-1])))
    return found


def labelled(given: Sequence[WrittenSolution], seed: int) -> list[dict[str, Any]]:
    """Every other one as it is, the others as twins, with the first wrong step; one without a twin is left out."""
    generator = random.Random(seed)
    found = []
    for number, solution in enumerate(given):
        shown, first = solution, -1
        if number % 2:
            others = generator.sample(list(given), 4)
            twin = flawed_twin(solution, "prose", seed=seed, kinds=KINDS, others=others)
            if twin is None:
                continue
            shown, first = twin.solution, twin.first_wrong
        steps = [step.rstrip("\n") for step in shown.steps]
        found.append({"id": f"{number}", "problem": shown.problem, "steps": steps, "first_error": first})
    return found


def made_rows(data: Path, output: Path, sizes: dict[str, Any]) -> None:
    """train.jsonl and val.jsonl, of different problems; experts.jsonl has the solutions of the first before the errors."""
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "experts": []}
    sets = {"gsm8k": ("gsm8k_train.jsonl.gz", "gsm8k"), "math": ("math_train12k.jsonl.gz", "math/train")}
    for name, (file, wanted) in sets.items():
        found = solutions(data / "math" / file, wanted)
        random.Random(0).shuffle(found)
        held_out = sizes["held_out"] // 2
        train = found[held_out : held_out + sizes[name]]
        for part, some in (("val", found[:held_out]), ("train", train)):
            parts[part] += [row | {"id": f"{name}/{part}/{row['id']}"} for row in labelled(some, seed=0)]
        parts["experts"] += [{"problem": one.problem, "solution": "".join(one.steps)} for one in train]
    output.mkdir(parents=True, exist_ok=True)
    for part, some in parts.items():
        (output / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")


# ---- training ----


LOGGER = "lightning.pytorch.loggers.CSVLogger"
TEXT = {"max_prompt_tokens": 512, "max_response_tokens": 512}


def sft_run(output: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """Imitation with the settings of `overlay`: model, LoRA, rate, steps, batches, lengths."""
    data = {"class_path": "repirl.data.sources.Table", "init_args": {"path": str(output / "experts.jsonl")}}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-4, "weight_decay": 0.0}}
    model = {
        "policy": {"class_path": "repirl.Policy", "init_args": {"path": SMOLLM2, "lora": LORA}},
        "policy_optimizer": optimizer,
        "policy_scheduler": {"class_path": "repirl.learning.learning_rate.WarmupDecay"},
        "text": TEXT,
        "micro_batch_tokens": 4096,
    }
    exports = {"class_path": "repirl.callbacks.export.ExportPolicy", "init_args": {"folder": str(output / "sft")}}
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": sizes["steps"],
            "max_epochs": -1,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "default_root_dir": str(output),
            "logger": {"class_path": LOGGER, "init_args": {"save_dir": str(output), "name": None, "version": ""}},
            "callbacks": [exports],
        },
        "model": {"class_path": "repirl.modules.sft.SFT", "init_args": model},
        "data": {
            "class_path": "repirl.data.expert.ExpertData",
            "init_args": {"train": data, "batch_prompts": BATCH, "seed": 1},
        },
    }


def overlay(output: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """Of configs/prm/step_labels.yaml."""
    saves = {"dirpath": str(output / "checkpoints"), "every_n_iterations": sizes["every"]}
    source = "repirl.data.step_sources.LabelledSteps"
    return {
        "trainer": {
            "max_steps": sizes["steps"],
            "val_check_interval": sizes["every"],
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "default_root_dir": str(output),
            "logger": {"class_path": LOGGER, "init_args": {"save_dir": str(output), "name": None, "version": ""}},
            "callbacks": [{"class_path": "repirl.callbacks.checkpoint.Checkpoint", "init_args": saves}],
        },
        "model": {
            "init_args": {
                "prm": {
                    "init_args": {
                        "kind": "q_head",
                        "backbone": {
                            "init_args": {
                                "path": SMOLLM2,
                                "config": None,
                                "tokens": None,
                                "lora": LORA,
                            }
                        },
                    }
                },
                "prm_optimizer": {"init_args": {"lr": 1.0e-4}},
                "prm_scheduler": {"class_path": "repirl.learning.learning_rate.WarmupDecay"},
                "text": TEXT,
                "micro_batch_tokens": 4096,
            }
        },
        "data": {
            "init_args": {
                "train": {"class_path": source, "init_args": {"path": str(output / "train.jsonl")}},
                "val": {"class_path": source, "init_args": {"path": str(output / "val.jsonl")}},
                "batch_solutions": BATCH,
            }
        },
    }


def trained(output: Path, sizes: dict[str, Any], threads: int) -> Path:
    """The checkpoint; training goes on from the last one where it was stopped."""
    done, checkpoint = output / "trained.json", output / "checkpoints" / "last.ckpt"
    if not done.is_file():
        path = output / "overlay.yaml"
        path.write_text(yaml.safe_dump(overlay(output, sizes), sort_keys=False))
        words = ["fit", "-c", str(ROOT / "configs" / "prm" / "step_labels.yaml"), "-c", str(path)]
        words += ["--ckpt_path", str(checkpoint)] if checkpoint.is_file() else []
        if Processes().repirl(words, output / "log.txt", threads):
            raise SystemExit(f"training failed; {output / 'log.txt'} says why")
        done.write_text("{}\n")
    return checkpoint


def imitated(output: Path, sizes: dict[str, Any], threads: int) -> Path:
    """The folder of the policy after SFT."""
    folder, path = output / "sft", output / "sft.yaml"
    if not (folder / "config.json").is_file():
        path.write_text(yaml.safe_dump(sft_run(output, sizes), sort_keys=False))
        if Processes().repirl(["fit", "-c", str(path)], output / "sft_log.txt", threads):
            raise SystemExit(f"training failed; {output / 'sft_log.txt'} says why")
    return folder


# ---- measuring ----


def plain_f1(path: Path, rewards: Path, threshold: float) -> float:
    """ProcessBench's F1 again: the harmonic mean of the shares of erroneous and of right solutions that are told."""
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for row, scored in zip(rows(path), rows(rewards), strict=False):
        if row["id"] != scored["id"]:
            raise ValueError(f"{rewards}: {scored['id']} stands where {row['id']} should")
        told = next((place for place, value in enumerate(scored["step_rewards"]) if value < threshold), -1)
        hits[row["first_error"] >= 0].append(told == row["first_error"])
    wrong, right = (sum(hits[kind]) / len(hits[kind]) for kind in (True, False))
    return 2 * wrong * right / (wrong + right) if wrong + right else 0.0


def evaluated(
    prm: Sequence[str], data: Path, report: Path, sizes: dict[str, Any], parts: Sequence[str]
) -> dict[str, Any]:
    """The report of `repirl evaluate-prm`, with each part's F1 as computed here. prm: the words that say which PRM it is."""
    files = {name: part(data / "prm" / PARTS[name], report.parent, sizes["limit"]) for name in parts}
    if not report.is_file():
        words = [*prm, "--output", str(report), "--controls", str(sizes["limit"] or 50)]
        repirl(["evaluate-prm", *words, "--path", *(f"{name}={file}" for name, file in files.items())])
    found: dict[str, Any] = json.loads(report.read_text())
    for name, file in files.items():
        again = plain_f1(file, report.with_suffix(f".{name}.jsonl"), found["threshold"])
        found["sets"][name]["f1_computed_again"] = again
        assert abs(again - found["sets"][name]["prm"]["f1"]) < 1e-12, name
    return found


def part(path: Path, output: Path, limit: int | None) -> Path:
    """The file itself, or one with its first so many erroneous and right solutions: a file's own beginning is erroneous."""
    if limit is None:
        return path
    given = list(rows(path))
    kinds = ([row for row in given if (row["first_error"] < 0) == right] for right in (False, True))
    shorter = output / path.name
    shorter.write_text("".join(json.dumps(row) + "\n" for kind in kinds for row in kind[:limit]), encoding="utf-8")
    return shorter


def within_generators(checkpoint: Path, data: Path, output: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """AUROC of right against wrong solutions within each generator: of each reward, and of a short text."""
    chosen, scored = output / "traces.jsonl", output / "traces_scored.jsonl"
    if not scored.is_file():
        by_problem: dict[str, list[dict[str, Any]]] = {}
        for row in rows(data / "traces" / "gsm8k_model_solutions.jsonl.gz"):
            by_problem.setdefault(row["problem"], []).append(row)
        some = random.Random(0).sample(sorted(by_problem), sizes["traced"])
        kept = [
            row for problem in some for row in by_problem[problem] if row["is_correct"] is not None and row["steps"]
        ]
        kept = [row | {"steps": [step for step in row["steps"] if step.strip()]} for row in kept]
        lines = [json.dumps({key: row[key] for key in ("problem", "steps", "is_correct", "generator")}) for row in kept]
        chosen.write_text("\n".join(lines) + "\n", encoding="utf-8")
        repirl(["score", "--prm", str(checkpoint), "--input", str(chosen), "--output", str(scored)])
    found = list(rows(scored))
    right, generators = torch.tensor([row["is_correct"] for row in found]), [row["generator"] for row in found]
    measured: dict[str, Any] = {"solutions": len(found)}
    for name in (*REWARDS, "short text"):
        values = [-sum(map(len, row["steps"])) if name == "short text" else row[name] for row in found]
        metric = AUROCWithin(sorted(set(generators)))
        metric.update(torch.tensor(values, dtype=torch.float64), right, generators)
        measured[name] = {key: float(value) for key, value in metric.compute().items()}
    return measured


def text_of(report: dict[str, Any]) -> str:
    """The parts of ProcessBench as Markdown."""
    columns = ["part", "n", "F1", "95 % interval", "always one answer", "length alone", "wrong-step AUROC", "of length"]
    lines = []
    for name, one in report["sets"].items():
        prm, length = one["prm"], one["length_alone"]
        interval = f"{prm['f1_low']:.3f} to {prm['f1_high']:.3f}"
        own = [f"{prm['f1']:.3f}", interval, "0", f"{length['f1']:.3f}"]
        lines.append([name, one["solutions"], *own, *(f"{x['wrong_step_auroc']:.3f}" for x in (prm, length))])
    return f"{table(columns, lines)}\nthreshold {report['threshold']:.3g}"


def text_within(within: dict[str, Any]) -> str:
    """AUROCs within generators as Markdown."""
    names = [key for key in within["mean"] if key != "pooled"]
    rewards = [[name, *(f"{within[name][key]:.3f}" for key in names)] for name in (*REWARDS, "short text")]
    shown = [key.removeprefix("within/") for key in names]
    return table(["reward", *shown], rewards)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is missing, then tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("outputs/process_bench"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sft", action="store_true", help="the rival by imitation instead of the PRM")
    parser.add_argument("--reduced", action="store_true", help="a few solutions: does it run")
    given = parser.parse_args(arguments)
    sizes = REDUCED if given.reduced else FULL
    torch.set_num_threads(given.threads)
    if not (given.output / "experts.jsonl").is_file():
        made_rows(given.data, given.output, sizes)
    if given.sft:
        policy = imitated(given.output, sizes, given.threads)
        words = ["--prm", str(policy), "--kind", "implicit", "--reference", SMOLLM2]
        report = evaluated(words, given.data, given.output / "report_sft.json", sizes, ["gsm8k"])
        written(given.output / "process_bench_sft.json", sizes, report | {"prm": policy.name})
        print(text_of(report))
        return 0
    checkpoint = trained(given.output, sizes, given.threads)
    report = evaluated(["--prm", str(checkpoint)], given.data, given.output / "report.json", sizes, list(PARTS))
    within = within_generators(checkpoint, given.data, given.output, sizes)
    written(given.output / "process_bench.json", sizes, report | {"prm": checkpoint.name}, within_generators=within)
    print(f"{text_of(report)}\n\n{text_within(within)}")
    return 0


def written(path: Path, sizes: dict[str, Any], report: dict[str, Any], **others: Any) -> None:
    """What was found, as JSON."""
    plain = {"sizes": sizes, "report": report, **others}
    path.write_text(json.dumps(plain, indent=1).replace("NaN", "null") + "\n")


if __name__ == "__main__":
    sys.exit(main())
