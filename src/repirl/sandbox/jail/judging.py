"""In the process of the tests: runs them against stand-ins for the program's functions, and says what came of it.

The tests are the data set's and trusted; what comes from the program is bytes, decoded into plain values and compared here.
"""

from __future__ import annotations

import builtins
import importlib
import symtable
import sys
import threading
import traceback
from typing import Any, NoReturn

from repirl.sandbox.jail import calls, inplace, values, wire
from repirl.sandbox.jail.module import MODULE, RECURSION_LIMIT, classes_of, run_in
from repirl.sandbox.jail.peer import Peer
from repirl.sandbox.jail.pending import TESTS, Pending, raising_lines
from repirl.sandbox.jail.standins import Refused, Remote, RemoteIterator, reference_of

REPLIES, REQUESTS = 3, 4  # descriptors of the process
MAX_DEPTH, MAX_CALLS = 300, 1_000_000  # of calls by the program
Finding = dict[str, str]  # status, detail
_MODULES = {name: name for name in sys.stdlib_module_names} | {"np": "numpy", "numpy": "numpy"}


class Over(BaseException):
    """Nothing more can come of this program. Not an Exception: a test's `except` must not swallow it."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(detail)
        self.finding = {"status": status, "detail": detail}


class Client(Peer):
    """Asks the program's process, and runs functions of the tests for it.

    over: what ended the conversation, if anything has. failed: an assertion that failed while the program was calling a
    function of the tests, which it must not hide. raised: exceptions of the program as seen by the tests; in words.
    """

    named = values.TYPES_GIVEN

    def __init__(self, classes: dict[str, type], code: str) -> None:
        super().__init__(REPLIES, REQUESTS, classes)
        self.over: Over | None = None
        self.failed: Exception | None = None
        self.raised: list[tuple[Exception, str]] = []
        self.pending = Pending(code)
        self.lock = threading.RLock()  # tests may have threads
        self._stand_ins: dict[int, Any] = {}
        self._exceptions: dict[int, type[Exception]] = {}
        self._aliases: dict[type[Exception], type[Exception]] = {}  # of built-in classes that the program renames
        self._given: list[Any] = []  # what the program may call, or only hold, by number
        self._callable: set[int] = set()
        self._depth = self._calls = 0
        self._has_answered = self._answering = False

    def ask(self, operation: str, *arguments: Any) -> Any:
        """The value of a request. Raises what the program raised, as a built-in exception; Over when it cannot go on."""
        with self.lock:
            if self.over is not None:
                raise self.over
            self.pending.settle()
            try:
                outcome = self.request(operation, arguments)
            except wire.Closed:
                self._end("ended", "the program ended before its tests did")
            except (OverflowError, values.TooLarge) as error:
                self._end("output_limit", str(error))
            except values.CodecError as error:
                self._end("error", f"the program's process sent {error}")
            return self._content(outcome)

    def _content(self, outcome: Any) -> Any:
        kinds = [type(part) for part in outcome] if type(outcome) is list else []
        if len(kinds) == 2 and outcome[0] == "value":
            self._has_answered |= not isinstance(outcome[1], bool | float | None)
            return outcome[1]
        if outcome == ["stop"]:
            raise StopIteration
        if kinds == [str, list, list, str, str, dict] and outcome[0] == "raise":
            error = self._exception(outcome[1], outcome[2], outcome[3], outcome[5])
            self.raised.append((error, outcome[4]))
            raise error
        if kinds != [str, str]:
            self._end("error", "the program's process sent no answer")
        self._end("output_limit" if outcome[0] == "large" else "error", f"the program returned {outcome[1]}"[:1000])

    def _end(self, status: str, detail: str) -> NoReturn:
        self.over = Over(status, detail)
        raise self.over

    def packed(self, value: Any, lent: values.Lent, *, lend: bool) -> bytes:
        """Bytes of a value. Raises Over: for the tests' own fault, unless the program can have made the value so large."""
        try:
            return super().packed(value, lent, lend=lend)
        except values.TooLarge as error:
            if self._has_answered:
                self._end("output_limit", f"with what the program returned, tests made {error}")
            self._end("tests", f"an argument cannot be sent to the program: {error}")
        except values.CodecError as error:
            self._end("tests", f"an argument cannot be sent to the program: {error}")

    def changed(self, lent: values.Lent, found: Any) -> None:
        """Takes over what the program did to arguments, once the statement that called it is over."""
        if found == []:
            return
        self._has_answered = True

        def apply() -> None:
            try:
                inplace.apply(lent, found)
            except values.CodecError as error:
                self._end("error", f"the program's process sent {error}")

        self.pending.add(apply, sys._getframe())

    def export(self, value: Any) -> values.Reference | None:
        """Stand-ins go back as what they stand for; functions and iterators of the tests by reference."""
        if isinstance(value, Remote | RemoteIterator):
            return reference_of(value)
        if isinstance(value, type) and value in self._exceptions.values():
            return "o", next(number for number, kind in self._exceptions.items() if kind is value)
        if callable(value) and not any(value is never for never in _NEVER_CALLED):
            return "b", self._give(value, may_call=True)
        if hasattr(type(value), "__next__"):
            return "n", self._give(value, may_call=True)
        return ("b", self._give(value, may_call=False)) if self._answering else None

    def _give(self, value: Any, *, may_call: bool) -> int:
        for number, given in enumerate(self._given[-100:], max(0, len(self._given) - 100)):
            if given is value:
                return number
        self._given.append(value)
        if may_call:
            self._callable.add(len(self._given) - 1)
        return len(self._given) - 1

    def resolve(self, kind: str, number: int) -> Any:
        """The stand-in for an object of the program, always the same; the tests' own object where it is one of theirs."""
        if kind in ("b", "n"):
            return self._given[number]
        if kind not in tuple("fcmogvx"):
            raise values.CodecError(f"a reference of the kind {kind!r}")
        if kind == "g":
            return RemoteIterator(self, number)
        return self._stand_ins.setdefault(number, Remote(self, number, kind))

    def perform(self, operation: str, arguments: list[Any]) -> list[Any]:
        """A call of a function of the tests, by the program."""
        if operation not in ("call", "next") or [type(part) for part in arguments] != [int, tuple, dict]:
            raise values.CodecError("a request that tests do not answer")
        number, positional, named = arguments
        self._calls += 1
        if self._depth >= MAX_DEPTH or self._calls > MAX_CALLS:
            self._end(
                "error", f"more than {MAX_CALLS} calls of functions of the tests, or {MAX_DEPTH} within one another"
            )
        self._depth += 1
        try:
            if number not in self._callable or not all(type(name) is str for name in named):
                raise TypeError("not a function of the tests")
            given = self._given[number]
            return ["value", next(given) if operation == "next" else given(*positional, **named)]
        except StopIteration:
            return ["stop"]
        except Exception as error:
            if isinstance(error, AssertionError | Refused):
                self.failed = self.failed or error
            names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
            return ["raise", [], names, str(error)[:10_000], "", {}]
        finally:
            self._depth -= 1

    def packed_answer(self, outcome: list[Any], lent: values.Lent, before: list[Any]) -> bytes:
        """What no value and no function is goes to the program too, to hold and to give back."""
        self._answering = True
        try:
            return super().packed_answer(outcome, lent, before)
        finally:
            self._answering = False

    def exception_class(self, stand_in: Remote) -> type[Exception]:
        """The tests' own class for an exception class of the program: it catches what the program raises as such.

        It catches nothing that the tests raise, also where the program only gives a built-in class another name.
        """
        lineage, names = self.ask("lineage", stand_in)
        kind = self._built(lineage, names)
        if lineage:
            return kind
        return self._aliases.setdefault(kind, type(kind.__name__, (kind,), {}))

    def _built(self, lineage: Any, names: list[Any]) -> type[Exception]:
        kind: type[Exception] | None = None
        for part in lineage:
            if type(part) is not list or [type(item) for item in part] != [int, str, list]:
                self._end("error", "the program's process sent a class that is none")
            number, name, bases = part
            if number not in self._exceptions:
                parents = [self._exceptions.get(base) if type(base) is int else _built_in_class(base) for base in bases]
                try:
                    made = type(name[:100], tuple(parent for parent in parents if parent), {})
                    kind = made if issubclass(made, Exception) else type(name[:100], (Exception,), {})
                except (TypeError, ValueError):  # bases that do not go together
                    kind = type("Exception", (Exception,), {})
                self._exceptions[number] = kind
            kind = self._exceptions[number]
        if kind is None:
            kind = next(filter(None, map(_built_in_class, names)), RuntimeError)
        return self._aliases.get(kind, kind)

    def _exception(self, lineage: list[Any], names: list[Any], text: str, details: dict[Any, Any]) -> Exception:
        kind = self._built(lineage, names)
        try:
            error = kind(text)
        except TypeError:  # UnicodeDecodeError and its like want more
            error = ValueError(text)
        if lineage:
            for name, value in details.items():
                if type(name) is str and not name.startswith("__"):
                    error.__dict__[name] = value
        return error

    def may_swallow(self, error: BaseException | None) -> bool:
        """Whether a context manager of the program may end this exception: only one that the tests raise on purpose.

        Any other may be a test that does not hold.
        """
        if error is None or not isinstance(error, Exception) or isinstance(error, AssertionError | Refused):
            return False
        lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == TESTS]
        return bool(lines) and lines[-1] in raising_lines(self.pending.code)


def _built_in_class(name: Any) -> type[Exception] | None:
    """A built-in exception. StopIteration would end a test's loop early, so it is none of the program's."""
    kind = getattr(builtins, name, None) if type(name) is str else None
    if not isinstance(kind, type) or not issubclass(kind, Exception):
        return None
    return None if issubclass(kind, StopIteration | StopAsyncIteration) else kind


# With these a program could look around in the process of the tests.
_NEVER_CALLED = (
    eval, exec, compile, getattr, setattr, delattr, vars, dir, globals, locals, open, __import__, input, breakpoint, type,
    super, object, id, memoryview, exit, quit, help,
)  # fmt: skip


def free_names(code: str) -> set[str]:
    """Global names that a script uses and does not define."""
    used: set[str] = set()
    top = symtable.symtable(code, "<tests>", "exec")
    tables = [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        used |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (s.is_global() or table is top)}
    own = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    return used - own


def judge(job: dict[str, Any]) -> Finding:
    """Runs the tests of a job.

    status: passed, failed, error, output_limit, memory, `ended` (the program's report knows why), `tests` (their own fault).
    """
    names: dict[str, Any] = {"__name__": MODULE}
    sys.setrecursionlimit(RECURSION_LIMIT)
    sys.set_int_max_str_digits(0)
    try:
        run_in(names, job["setup"], "<setup>")
        classes = classes_of(names)
        run_in(names, job["prefix"], "<prefix>")
        client = Client(classes, job["code"])
        if job["kind"] == "calls":
            tests: Any = calls.parsed(job["pairs"])
            wanted = calls.wanted(job["entry_point"])
        else:
            tests = compile(job["code"], TESTS, "exec", dont_inherit=True)
            # A program must not replace what the tests take for granted, but for the function that it is asked for.
            wanted = free_names(job["code"]) - set(dir(builtins)) - set(names)
            for name in wanted & _MODULES.keys():
                names[name] = importlib.import_module(_MODULES[name])
            wanted -= _MODULES.keys()
            wanted |= {calls.head(job["entry_point"])} if job["entry_point"] else set()
    except Exception as error:
        return {"status": "tests", "detail": f"the tests cannot be run: {_last_line(error)}"}
    try:
        bound = client.ask("bind", sorted(wanted))
        if type(bound) is not dict or not set(bound) <= wanted:
            raise Over("error", "the program's process sent names that nobody asked for")
        for name, value in bound.items():
            is_exception = isinstance(value, Remote) and value._kind == "x"
            names[name] = client.exception_class(value) if is_exception else value
        if job["kind"] == "calls":
            calls.compare(calls.entry(bound, job["entry_point"]), tests)
        else:
            exec(tests, names)
    except Over as over:
        return over.finding
    except MemoryError:
        return {"status": "memory", "detail": "out of memory in the tests, on what the program returned"}
    except BaseException as error:
        if client.over is not None:
            return client.over.finding
        own = [text for known, text in client.raised if error is known]
        return {"status": "error" if own else "failed", "detail": own[0] if own else _last_line(error)}
    if client.over is not None:
        return client.over.finding
    if client.failed is not None:
        return {"status": "failed", "detail": _last_line(client.failed)}
    return {"status": "passed", "detail": ""}


def _last_line(error: BaseException) -> str:
    walked = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in walked if frame.f_code.co_filename == TESTS]
    try:
        text = f"{type(error).__name__}: {error}"[:500]
    except Exception:  # a value too deep or too long to print
        text = type(error).__name__
    return f"{text} (line {lines[-1]} of the tests)" if lines else text
