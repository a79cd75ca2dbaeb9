"""In the process of the tests: runs them against stand-ins for the program's functions, and says what came of it.

The tests are the data set's and trusted; what comes from the program is bytes, decoded into plain values and compared here.
"""

from __future__ import annotations

import builtins
import importlib
import symtable
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from repirl.verifiers.jail import calls, values, wire
from repirl.verifiers.jail.agent import MODULE, RECURSION_LIMIT, classes_of, run_in

REPLIES, REQUESTS = 3, 4  # descriptors of the process
Finding = dict[str, str]  # status, detail
_MODULES = {name: name for name in sys.stdlib_module_names} | {"np": "numpy", "numpy": "numpy"}


class Over(BaseException):
    """Nothing more can come of this program. Not an Exception: a test's `except` must not swallow it."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(detail)
        self.finding = {"status": status, "detail": detail}


class Client:
    """Asks the program's process. over: what ended the conversation, if anything has."""

    def __init__(self, classes: dict[str, type]) -> None:
        self.classes = classes
        self.over: Over | None = None
        self.raised: list[tuple[Exception, str]] = []  # by the program, as seen by the tests; in words

    def ask(self, operation: str, *arguments: Any) -> Any:
        """The value of a request. Raises what the program raised, as a built-in exception; Over when it cannot go on."""
        if self.over is not None:
            raise self.over
        try:
            request = values.encode([operation, *arguments], export=_number_of, classes=self.classes)
        except values.CodecError as error:
            self._end("tests", f"an argument cannot be sent to the program: {error}")
        try:
            wire.write_frame(REQUESTS, request)
            reply = wire.read_frame(REPLIES, values.MAX_BYTES)
            message = values.decode(reply, resolve=self._stand_in, classes=self.classes)
        except wire.Closed:
            self._end("ended", "the program ended before its tests did")
        except (OverflowError, values.TooLarge) as error:
            self._end("output_limit", str(error))
        except values.CodecError as error:
            self._end("error", f"the program's process sent {error}")
        return self._content(message)

    def _content(self, message: Any) -> Any:
        if type(message) is list and len(message) == 2 and message[0] == "value":
            return message[1]
        if message == ["stop"]:
            raise StopIteration
        if type(message) is not list or [type(part) for part in message[1:]] not in ([str], [list, str, str]):
            self._end("error", "the program's process sent no answer")
        if message[0] == "raise" and len(message) == 4:
            error = _exception(message[1], message[2])
            self.raised.append((error, message[3]))
            raise error
        self._end("output_limit" if message[0] == "large" else "error", f"the program returned {message[-1]}"[:1000])

    def _end(self, status: str, detail: str) -> NoReturn:
        self.over = Over(status, detail)
        raise self.over

    def _stand_in(self, kind: str, number: int) -> Any:
        return RemoteIterator(self, number) if kind == "g" else Remote(self, number, kind)


def _exception(names: list[Any], text: str) -> Exception:
    """A built-in exception. StopIteration would end a test's loop early, so it is none of the program's."""
    for name in names:
        kind = getattr(builtins, name, None) if type(name) is str else None
        if (
            isinstance(kind, type)
            and issubclass(kind, Exception)
            and not issubclass(kind, StopIteration | StopAsyncIteration)
        ):
            try:
                return kind(text)
            except TypeError:  # UnicodeDecodeError and its like want more; the next is their base
                continue
    return RuntimeError(text)


def _number_of(value: Any) -> values.Reference | None:
    if isinstance(value, Remote | RemoteIterator):
        return "o", value._number
    return None


class RemoteIterator:
    """An iterator of the program, read item by item."""

    def __init__(self, client: Client, number: int) -> None:
        self._client, self._number = client, number

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._client.ask("next", self)


class Remote:
    """A function, class or object of the program. Its results are values; it is never compared or true by itself."""

    __slots__ = ("__name__", "_client", "_kind", "_number")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, client: Client, number: int, kind: str) -> None:
        for slot, value in zip(self.__slots__, ("candidate", client, kind, number), strict=True):
            object.__setattr__(self, slot, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:  # noqa: D102
        return self._client.ask("call", self, arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._client.ask("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._client.ask("set_attribute", self, name, value)

    def __len__(self) -> int:
        found = self._client.ask("length", self)
        if type(found) is not int:
            raise TypeError("a length that is no integer")
        return found

    def __getitem__(self, key: Any) -> Any:
        return self._client.ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._client.ask("set_item", self, key, value)

    def __contains__(self, item: Any) -> bool:
        return self._client.ask("contains", self, item) is True

    def __iter__(self) -> Any:
        found = self._client.ask("iterate", self)
        return found if isinstance(found, RemoteIterator) else iter(found)

    def __str__(self) -> str:
        return _text(self._client.ask("text", self))

    def __repr__(self) -> str:
        return _text(self._client.ask("form", self))

    def _not_compared(self, *_: Any) -> NoReturn:
        raise TypeError("an object of the program's own class is not compared, only values are")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _not_compared

    def __bool__(self) -> bool:
        if self._kind == "o":
            self._not_compared()
        return True  # as for every function, class and match


def _text(found: Any) -> str:
    if type(found) is not str:
        raise TypeError("a text that is no text")
    return found


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
        client = Client(classes)
        if job["kind"] == "calls":
            tests: Any = calls.parsed(job["pairs"])
            wanted = calls.wanted(job["entry_point"])
        else:
            tests = compile(job["code"], "<tests>", "exec", dont_inherit=True)
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
        names.update(bound)
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
    return {"status": "passed", "detail": ""}


def _last_line(error: BaseException) -> str:
    walked = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in walked if frame.f_code.co_filename == "<tests>"]
    try:
        text = f"{type(error).__name__}: {error}"[:500]
    except Exception:  # a value too deep or too long to print
        text = type(error).__name__
    return f"{text} (line {lines[-1]} of the tests)" if lines else text
