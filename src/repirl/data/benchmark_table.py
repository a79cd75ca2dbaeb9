"""What each standard benchmark is: where it comes from, who may use it, how it is read and asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from repirl.data import code, math
from repirl.structs import Problem

Reader = Callable[[Mapping[str, Any], str], Problem | None]
"""A row and its default id to a problem; None: the row is not part of the set."""

BOXED = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}."
"""The usual prompt for mathematics (Qwen2.5-Math's)."""

SCRIPT = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    "```python\n{problem}\n```"
)
"""The usual prompt for programs (EvalPlus's): a signature to complete,"""
DESCRIBED = SCRIPT.replace("{problem}", '"""\n{problem}\n"""')
"""or a description."""

BenchmarkName = Literal[
    "gsm8k",
    "gsm8k_train",
    "math500",
    "math_train",
    "aime2024",
    "aime2025",
    "amc2023",
    "minerva",
    "olympiadbench",
    "humaneval",
    "humaneval_plus",
    "mbpp",
    "mbpp_plus",
    "leetcode",
    "leetcode_dataset",
]


@dataclass(frozen=True, slots=True)
class Spec:
    """What a benchmark is.

    path: hub id, or the URL of a JSONL file. read: a row to a problem. size: its problems. licence: of the data.
    prompt: the usual one, with {problem}; None where each row brings its own. kind: what answers it, and so its metric.
    names: configurations of the hub data set, one after another. revision: commit of a hub data set.
    """

    path: str
    read: Reader
    size: int
    licence: str
    kind: Literal["math", "code"] = "math"
    prompt: str | None = BOXED
    split: str = "test"
    names: tuple[str | None, ...] = (None,)
    revision: str | None = None


_MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_GSM8K = "e53f048856ff4f594e959d75785d2c2d37b678ee"
_CONTEST = (
    "https://raw.githubusercontent.com/deepseek-ai/DeepSeek-Coder/ab5d1b2c65d2034feae338a93f5a3885166d266b/"
    "Evaluation/LeetCode/data/20240121-Jul.jsonl"
)

BENCHMARKS: dict[str, Spec] = {
    "gsm8k": Spec("openai/gsm8k", math.read_gsm8k, 1319, "MIT", names=("main",), revision=_GSM8K),
    "gsm8k_train": Spec("openai/gsm8k", math.read_gsm8k, 7473, "MIT", names=("main",), revision=_GSM8K, split="train"),
    "math500": Spec(
        "HuggingFaceH4/MATH-500",
        math.read_answered,
        500,
        "MIT; rights in the problem texts are contested",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
    ),
    "math_train": Spec(
        "EleutherAI/hendrycks_math",
        math.read_boxed,
        7500,
        "MIT; rights in the problem texts are contested",
        names=_MATH_SUBJECTS,
        split="train",
        revision="21a5633873b6a120296cce3e2df9d5550074f4a3",
    ),
    "aime2024": Spec(
        "HuggingFaceH4/aime_2024",
        math.read_answered,
        30,
        "none stated; problems of the MAA",
        split="train",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
    ),
    "aime2025": Spec(
        "math-ai/aime25",
        math.read_answered,
        30,
        "Apache-2.0; problems of the MAA",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
    ),
    "amc2023": Spec(
        "math-ai/amc23",
        math.read_answered,
        40,
        "none stated; problems of the MAA",
        revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
    ),
    "minerva": Spec(
        "math-ai/minervamath",
        math.read_answered,
        272,
        "none stated; from MIT OpenCourseWare (CC BY-NC-SA 4.0)",
        revision="ee46ddc498933b1977577953250ca5c66be64f96",
    ),
    "olympiadbench": Spec(
        "Hothan/OlympiadBench",
        math.read_olympiadbench,
        674,
        "MIT",
        names=("OE_TO_maths_en_COMP",),
        split="train",
        revision="91184b52131e7fc9455fef848035173aea8cc01a",
    ),
    "humaneval": Spec(
        "openai/openai_humaneval",
        code.read_humaneval,
        164,
        "MIT",
        kind="code",
        prompt=SCRIPT,
        revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
    ),
    "humaneval_plus": Spec(
        "evalplus/humanevalplus",
        code.read_humaneval,
        164,
        "Apache-2.0",
        kind="code",
        prompt=SCRIPT,
        revision="d32357cf319e50e9c8d8dab5ea876c72b0fd321b",
    ),
    "mbpp": Spec(
        "google-research-datasets/mbpp",
        code.read_mbpp,
        500,
        "CC BY 4.0",
        kind="code",
        prompt=DESCRIBED,
        names=("full",),
        revision="4bb6404fdc6cacfda99d4ac4205087b89d32030c",
    ),
    "mbpp_plus": Spec(
        "evalplus/mbppplus",
        code.read_mbpp,
        378,
        "Apache-2.0",
        kind="code",
        prompt=DESCRIBED,
        revision="b2d74c91837c3f2a20c1299ae98133cbe7cfa077",
    ),
    "leetcode": Spec(
        _CONTEST,
        code.read_leetcode_contest,
        180,
        "code MIT; problems of LeetCode",
        kind="code",
        prompt=None,
    ),
    "leetcode_dataset": Spec(
        "newfacade/LeetCodeDataset",
        code.read_leetcode,
        228,
        "Apache-2.0; problems of LeetCode",
        kind="code",
        prompt=None,
        revision="215604aeed660029df7de2fea5a4d7b6ed476a08",
    ),
}
"""Name -> what it is; docs/benchmarks.md shows the same table."""
assert tuple(BENCHMARKS) == get_args(BenchmarkName)
