"""How far the math verifier agrees with the test pairs of Math-Verify and of NeMo-Skills, and which golds it can read.

    python benchmarks/math_agreement.py --math-verify FOLDER --nemo-skills FILE --golds FOLDER

--math-verify: the folder `tests` of github.com/huggingface/Math-Verify. --nemo-skills: `tests/test_math_equal.py` of
github.com/NVIDIA-NeMo/Skills. --golds: a folder of minerva_math.jsonl, college_math.jsonl and gaokao2023en.jsonl, each
`evaluation/data/NAME/test.jsonl` of github.com/QwenLM/Qwen2.5-Math. Their tests are parsed, not run.

Prints counts and every disagreement without a judgement in math_agreement.jsonl (gold, answer, theirs, ours, who is right,
why); exits with 1 where there is one, or where a judgement is about a disagreement that is no more.
"""

import argparse
import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from repirl.data.math import last_boxed
from repirl.structs import Problem
from repirl.verifiers.math import MathVerifier, extract_answer

JUDGEMENTS = Path(__file__).with_suffix(".jsonl")
GOLDS = ("minerva_math", "college_math", "gaokao2023en")
FORMULA = re.compile(r"\$\$.*?\$\$|\$.*?\$|\\\[.*?\\\]|\\\(.*?\\\)", re.DOTALL)
Pair = tuple[str, str, bool]


def parametrised(path: Path) -> Iterator[tuple[str, list[str], list[object]]]:
    """(test's name, argument names, values) of every literal row of pytest.mark.parametrize."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and "parametrize" in ast.unparse(decorator.func):
                names = [name.strip() for name in str(ast.literal_eval(decorator.args[0])).split(",")]
                for row in getattr(decorator.args[1], "elts", ()):
                    try:
                        values = ast.literal_eval(row)
                    except ValueError:
                        continue  # computed, such as 5 / 2
                    yield node.name, names, list(values) if len(names) > 1 else [values]


def math_verify_pairs(folder: Path) -> Iterator[Pair]:
    """Gold, prediction and verdict; of tests with a setting of their own, those under the settings used here."""
    for path in sorted(folder.glob("test_*.py")):
        for _, names, values in parametrised(path):
            row = dict(zip(names, values, strict=True))
            verdict = row.get("expected", row.get("result"))
            ours = row.get("strict", True) and row.get("allow_set_relation_comp", True)
            if ours and {"gold", "pred"} <= set(row) and isinstance(verdict, int):
                yield str(row["gold"]), str(row["pred"]), bool(verdict)


def nemo_skills_pairs(path: Path) -> Iterator[Pair]:
    """Both orders of each pair, as the tests ask them."""
    for name, _, values in parametrised(path):
        pair = values[0]
        if isinstance(pair, tuple) and None not in pair:
            gold, answer = map(str, pair)
            verdict = "incorrect" not in name
            yield gold, answer, verdict
            if gold != answer:
                yield answer, gold, verdict


def answer_of(text: str) -> str | None:
    """The boxed answer, or the text where it is one formula; None for prose, from which nothing is extracted here."""
    if (boxed := extract_answer(text)) is not None:
        return boxed
    outside = re.sub(r"\\[a-zA-Z]+|\\text\{[^{}]*\}", " ", FORMULA.sub(" ", text))
    words = re.findall(r"[A-Za-z]{3,}", outside)
    return None if len(words) > 2 or (words and FORMULA.search(text)) else text


def short(text: str) -> str:
    """By which a pair is known in the table: not a whole solution."""
    return text if len(text) <= 120 else f"{text[:100]}..."


def judgements() -> dict[tuple[str, str], list[str]]:
    """Who is right and why, by gold and answer."""
    if not JUDGEMENTS.exists():
        return {}
    rows = [json.loads(line) for line in JUDGEMENTS.read_text(encoding="utf-8").split("\n") if line]
    return {(row[0], row[1]): row[2:] for row in rows}


def agreement(verifier: MathVerifier, suite: str, pairs: list[Pair], known: dict[tuple[str, str], list[str]]) -> set:
    """Prints the counts of a suite; the disagreements."""
    pairs = list(dict.fromkeys(pairs))
    asked = [row for row in pairs if answer_of(row[0]) is not None and answer_of(row[1]) is not None]
    found = verifier.compare([str(answer_of(row[0])) for row in asked], [answer_of(row[1]) for row in asked])
    counts = Counter(
        "agree" if got.correct is verdict else "disagree" for (*_, verdict), got in zip(asked, found, strict=True)
    )
    differing = set()
    for (gold, answer, verdict), got in zip(asked, found, strict=True):
        if got.correct is not verdict:
            pair = (short(gold), short(answer))
            differing.add(pair)
            who, why = known.get(pair, ["", "", "?", "?"])[2:]
            counts[who] += 1
            if why == "?":
                print(json.dumps([*pair, verdict, got.status, "?", "?"], ensure_ascii=False))
    print(f"{suite}: {len(pairs)} pairs, {len(pairs) - len(asked)} prose without a box, {dict(counts)}")
    return differing


def golds(verifier: MathVerifier, folder: Path) -> None:
    """Prints which golds cannot be read."""
    for name in GOLDS:
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line]
        answers = [str(row["answer"]) if "answer" in row else last_boxed(row["solution"]) for row in rows]
        problems = [Problem(id=str(n), text="?", answer=answer) for n, answer in enumerate(answers)]
        unread = verifier.check_golds(problems)
        print(f"{name}: {len(problems)} golds, {len(unread)} unreadable")
        for number, gold in unread if len(unread) < 20 else ():
            print(f"    {number}: {gold!r:.150}")


def main() -> None:
    """Compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--math-verify", type=Path)
    parser.add_argument("--nemo-skills", type=Path)
    parser.add_argument("--golds", type=Path)
    args = parser.parse_args()
    known = judgements()
    verifier = MathVerifier()
    differing: set[tuple[str, str]] = set()
    if args.math_verify:
        differing |= agreement(verifier, "Math-Verify", list(math_verify_pairs(args.math_verify)), known)
    if args.nemo_skills:
        differing |= agreement(verifier, "NeMo-Skills", list(nemo_skills_pairs(args.nemo_skills)), known)
    if args.golds:
        golds(verifier, args.golds)
    verifier.close()
    stale = set(known) - differing if args.math_verify and args.nemo_skills else set()
    for pair in sorted(stale):
        print("agreed by now:", pair)
    sys.exit(bool(stale or differing - set(known)))


if __name__ == "__main__":
    main()
