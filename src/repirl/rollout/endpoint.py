"""Requests over HTTP to what answers with JSON: rate limits, retries, plain errors; many at a time."""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import queue
import random
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from http import HTTPStatus
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from repirl import __version__

LONGEST_BACKOFF_S = 60.0
LONGEST_WAIT_S = 600.0  # that an endpoint may ask for
LARGEST_BODY = 2**26  # bytes
TICK_S = 1.0
PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)  # of 4xx: asking again may help
OF_ONE_REQUEST = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Refused(ValueError):
    """The endpoint refuses what is asked, and would again.

    of_one_request: others may be answered.
    """

    def __init__(self, message: str, *, of_one_request: bool = False) -> None:
        super().__init__(message)
        self.of_one_request = of_one_request


class NoAnswer(ValueError):
    """All attempts at a request failed."""


class Stopped(Exception):
    """The program ends while a request waits for its turn."""


class Passing(Exception):
    """A failure that may pass. wait_s: how long the endpoint asks to wait."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Turns:
    """When requests may be sent: at even distances, and not while the endpoint asks to wait. Any thread may ask.

    Args:
        per_minute: requests a minute; None = any number.
        clock: seconds.
        wait: waits so many seconds; True where the program ends meanwhile.
    """

    def __init__(
        self, per_minute: float | None, clock: Callable[[], float], wait: Callable[[float], bool | None]
    ) -> None:
        self._gap_s = 60 / per_minute if per_minute else 0.0
        self._clock, self._wait = clock, wait
        self._lock = threading.Lock()
        self._next = self._paused_until = -float("inf")

    def take(self, after_s: float = 0.0) -> None:
        """Waits for a turn, at least so many seconds. Raises Stopped."""
        start = self._given(self._clock() + after_s)
        while (left := start - self._clock()) > 0:
            if self._wait(left):
                raise Stopped
            if start < self._paused_until:  # else all turns within a pause would come at its end
                start = self._given(self._paused_until)

    def _given(self, earliest: float) -> float:
        """When the next free turn is, which is taken by this."""
        with self._lock:
            start = max(earliest, self._next, self._paused_until)
            self._next = start + self._gap_s
            return start

    def pause(self, seconds: float) -> None:
        """Lets nobody have a turn for so long."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + seconds)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would take the key to another host."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """Gives no request."""


@dataclass
class Endpoint:
    """What answers with JSON over HTTP. Any thread may ask.

    Args:
        base_url: such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1.
        api_key_env: the environment variable that holds the key; where it is not set, none is sent.
        requests_per_minute: attempts included; None = any number.
        timeout_s: of one attempt.
        retries: attempts after the first, where the failure may pass.
        stop: set where the program ends: nobody waits any longer then.

    last_failure: of an attempt; None where none failed.
    setting: the user's name of `base_url`, for messages.
    """

    setting: ClassVar[str] = "base_url"

    base_url: str
    _: KW_ONLY
    api_key_env: str = "OPENAI_API_KEY"
    requests_per_minute: float | None = None
    timeout_s: float = 600.0
    retries: int = 8
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.host = host_of(self.base_url, self.setting)
        self._key = _key_of(self.api_key_env)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self.last_failure: str | None = None
        self.turns = Turns(self.requests_per_minute, time.monotonic, self.stop.wait)

    def answer(self, url: str, content: Mapping[str, Any] | None, read: Callable[[Any], Answer]) -> tuple[Answer, int]:
        """What `read` makes of an answer's JSON, and the attempts that it took.

        Args:
            url: what is asked.
            content: posted as JSON; None = the url is got.
            read: raises Passing where the answer is none, which is a failed attempt.

        Raises:
            Refused: asking again would give nothing.
            NoAnswer: all attempts failed.
            Stopped: `stop` was set while it waited.
        """
        body = None if content is None else json.dumps(content).encode()
        after_s, attempts = 0.0, self.retries + 1
        for attempt in range(1, attempts + 1):
            if self.stop.is_set():
                raise Stopped
            self.turns.take(after_s)
            try:
                return read(self._asked(url, body)), attempt
            except Passing as error:
                last = error
                self.last_failure = str(error)
            if last.wait_s is not None:
                if last.wait_s > LONGEST_WAIT_S:
                    raise Refused(f"{self.host}: {last}, and asks to wait {last.wait_s:.0f} s; try again then")
                self.turns.pause(last.wait_s)
            after_s = 0.0 if last.wait_s is not None else backoff_s(attempt)
        raise NoAnswer(f"{self.host}: no answer after {attempts} attempts, the last: {last}")

    def advice(self, status: int) -> str:
        """What to look at after a refusal with this status; empty where there is nothing to say."""
        return f"check {self.setting}" if status == HTTPStatus.NOT_FOUND else ""

    def _asked(self, url: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json", "User-Agent": f"repirl/{__version__}"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(url, data=body, headers=headers)
        deadline = time.monotonic() + self.timeout_s
        try:
            with self._opener.open(request, timeout=self.timeout_s) as reply:
                content = _read(reply, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error.code, error.headers.get("Retry-After"), _said(error)) from None
        except TimeoutError:
            raise Passing(f"timed out after {self.timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(getattr(error, "reason", error)) from None
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise Passing(f"the answer is not JSON: {self._shown(content.decode(errors='replace'))}") from None

    def _broken(self, reason: object) -> Exception:
        if isinstance(reason, TimeoutError):
            return Passing(f"timed out after {self.timeout_s:g} s")
        if isinstance(reason, ssl.SSLCertVerificationError):
            return Refused(f"{self.host}: its certificate is not trusted here ({reason.verify_message})")
        return Passing(f"the connection failed ({type(reason).__name__}: {self._shown(str(reason))})")

    def _refusal(self, status: int, retry_after: str | None, said: str) -> Exception:
        shown = f"HTTP {status}" + (f", {text!r}" if (text := self._shown(said)) else "")
        if status in PASSING or status >= 500:
            return Passing(shown, _seconds(retry_after))
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            state = "is not set" if self._key is None else "holds a key that is not admitted"
            return Refused(f"{self.host}: {shown}: the environment variable {self.api_key_env} {state}")
        if 300 <= status < 400:
            return Refused(f"{self.host}: {shown}: it redirects elsewhere; give {self.setting} as it is in the end")
        shown += f": {advice}" if (advice := self.advice(status)) else ""
        return Refused(f"{self.host}: {shown}", of_one_request=status in OF_ONE_REQUEST)

    def _shown(self, text: str) -> str:
        """A text of the endpoint's for a message, short and without the key."""
        text = " ".join((text if self._key is None else text.replace(self._key, "***")).split())
        return text if len(text) <= 200 else f"{text[:197]}..."


def host_of(base_url: str, setting: str = "base_url") -> str:
    """Host and port. Raises ValueError for an address that is none, or that holds what is secret."""
    url = urlsplit(base_url)
    if url.username or url.password or url.query or url.fragment or "@" in url.netloc:
        raise ValueError(
            f"{setting} holds a user, a password or a query, which would be written into files; give the bare address, "
            "and the key in an environment variable"
        )
    try:
        port = url.port
    except ValueError as error:
        raise ValueError(f"{setting} {base_url!r}: {error}") from error
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"{setting} {base_url!r}: give an address such as http://127.0.0.1:8000/v1")
    return url.hostname if port is None else f"{url.hostname}:{port}"


def backoff_s(attempt: int) -> float:
    """Seconds before the attempt after this one: doubled each time, and by chance less, so that not all come at once."""
    return min(2.0 ** (attempt - 1), LONGEST_BACKOFF_S) * random.uniform(0.5, 1.0)


def _key_of(variable: str) -> str | None:
    if not _VARIABLE.fullmatch(variable):  # not shown: it may be a key
        raise ValueError("api_key_env: give the name of an environment variable, in capitals, and not the key itself")
    key = os.environ.get(variable, "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise ValueError(f"the environment variable {variable} holds characters that no key has; set it anew")
    return key or None


def _seconds(retry_after: str | None) -> float | None:
    """The seconds of a Retry-After header, which has a number or a date."""
    if retry_after is None:
        return None
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _read(reply: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole body. Raises TimeoutError where it drips past the deadline, OSError where it ends early."""
    parts, size = [], 0
    while part := reply.read1(2**16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > LARGEST_BODY:
            raise OSError(f"an answer of more than {LARGEST_BODY} bytes")
    promised = reply.headers.get("Content-Length")
    if promised is not None and promised.isdigit() and size < int(promised):
        raise ConnectionError(f"cut after {size} of {promised} bytes")
    return b"".join(parts)


def _said(error: urllib.error.HTTPError) -> str:
    """The message of an error's body, by the forms that servers use; else its beginning."""
    try:
        text = error.read(2**16).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    inner = body.get("error", body) if isinstance(body, dict) else body
    said = (inner.get("message") or inner.get("detail")) if isinstance(inner, dict) else inner
    return said if isinstance(said, str) else text


def in_threads(
    ask: Callable[[Asked], Answer],
    wanted: Sequence[Asked],
    ends: Callable[[Asked, Answer | Exception], bool],
    *,
    concurrent: int,
    stop: threading.Event,
) -> Iterator[tuple[Asked, Answer | Exception] | None]:
    """Results as they come, from so many threads, and None now and then. What is under way at the end is waited for.

    ends: whether nothing more is to be asked after this answer; any thread asks it.
    """
    left, lock = iter(wanted), threading.Lock()
    results: queue.Queue[tuple[Asked, Answer | Exception] | None] = queue.Queue()

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    one = next(left, None)
                if one is None:
                    return
                answer: Answer | Exception
                try:
                    answer = ask(one)
                except Stopped:
                    return
                except Exception as error:
                    answer = error
                if ends(one, answer):
                    stop.set()
                results.put((one, answer))
        finally:
            results.put(None)

    running = min(concurrent, len(wanted))
    for _ in range(running):
        threading.Thread(target=work, daemon=True).start()  # a signal must not wait for an endpoint
    try:
        while running:
            try:
                result = results.get(timeout=TICK_S)
            except queue.Empty:
                yield None
                continue
            if result is None:
                running -= 1
            else:
                yield result
    finally:
        stop.set()
