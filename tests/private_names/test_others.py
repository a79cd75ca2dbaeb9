"""Canaries for the private names of math-verify, sympy, YAML and Python (docs/private-names.md)."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.private_names.table import canary


@canary("parser.latex2sympy")
def test_math_verify_reads_by_a_function_that_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    import math_verify.parser
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    monkeypatch.setattr(math_verify.parser, "latex2sympy", latex2sympy)  # another test may have replaced it
    assert str(math_verify.parse("$N$")[0]) == "n"  # the reason why

    def with_case(text: str, **options: Any) -> Any:
        return latex2sympy(text, **options, conversion_config=ConversionConfig(lowercase_symbols=False))

    monkeypatch.setattr(math_verify.parser, "latex2sympy", with_case)
    assert str(math_verify.parse("$N+1$")[0]) == "N + 1"


@canary("FiniteSet._unsorted_args", "And._unsorted_args", "core.function.AppliedUndef")
def test_lists_and_chains_keep_what_was_written() -> None:
    import math_verify
    import sympy
    from latex2sympy2_extended.logic import And

    (written, *_) = math_verify.parse(r"$\{2,1,2\}$")
    assert isinstance(written, sympy.FiniteSet)
    assert list(written._unsorted_args) == [2, 1, 2]
    (chain, *_) = math_verify.parse("$x = 4 = 5$")
    assert isinstance(chain, And)
    assert [(str(part.lhs), part.rhs) for part in chain._unsorted_args] == [("x", 4), ("4", 5)]
    (named, *_) = math_verify.parse("$f(x) = 5$")
    assert isinstance(named.lhs, sympy.core.function.AppliedUndef)


@canary("Float._prec")
def test_a_sum_that_cancels_has_precision_one() -> None:
    import sympy

    nothing_left = sympy.N(sympy.sqrt(3 + 2 * sympy.sqrt(2)) - 1 - sympy.sqrt(2), 40)
    assert nothing_left.is_Float
    assert nothing_left != 0
    assert nothing_left._prec == 1
    assert sympy.N(sympy.sqrt(2), 40)._prec > 100


@canary("Resolver.yaml_implicit_resolvers")
def test_a_loader_may_read_other_scalars() -> None:
    import yaml

    class Loader(yaml.SafeLoader):
        """Without dates."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in pairs if not tag.endswith(":timestamp")]
        for first, pairs in Loader.yaml_implicit_resolvers.items()
    }
    assert yaml.load("2026-01-02", Loader=Loader) == "2026-01-02"
    assert str(type(yaml.safe_load("2026-01-02"))) == "<class 'datetime.date'>"


@canary("atexit._run_exitfuncs")
def test_what_was_registered_for_the_end_runs_once_when_asked() -> None:
    program = "import atexit; atexit.register(print, 'end'); atexit._run_exitfuncs(); print('after', flush=True)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["end", "after"]


@canary("multiprocessing.process.BaseProcess")
def test_processes_of_a_context_share_one_base() -> None:
    import multiprocessing
    from multiprocessing.process import BaseProcess

    process = multiprocessing.get_context("forkserver").Process(target=print)
    assert isinstance(process, BaseProcess)
    assert {"terminate", "kill"} <= vars(BaseProcess).keys()
