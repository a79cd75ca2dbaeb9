"""Waits for servers of the sandbox, and looks at them meanwhile: is one lost, is a job idle, has somebody given up?"""

from __future__ import annotations

import array
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

from repirl.sandbox.jail import wire
from repirl.sandbox.jail.processor import states

TICK_S = 0.25  # between looks
STOPPED_S = 3.0  # a server that a signal has stopped for so long is lost
SILENT_S = 20.0  # and one that does not answer, although it neither runs nor waits for a processor or a disk


class ServerLost(Exception):
    """A server ended, or does not answer: the machine's fault, not the program's."""


class Interrupted(Exception):
    """The wait was given up from outside."""


class Server(Protocol):
    """What is known of a server here: its socket, and its process as seen from here."""

    control: socket.socket

    @property
    def pid(self) -> int:
        """Its process."""


class Silence:
    """How long a server has been silent, and for what reason."""

    def __init__(self, server: Server, limit_s: float = SILENT_S) -> None:
        self.server, self.limit_s = server, limit_s
        self.heard()

    def heard(self) -> None:
        """It has just said something."""
        self.busy_at = self.moving_at = time.monotonic()

    def check(self) -> None:
        """To be called at least each second or so while it owes an answer. Raises ServerLost."""
        now, found = time.monotonic(), states(self.server.pid)
        if found & {"R", "D"}:
            self.busy_at = now
        if not found <= {"T", "t"}:
            self.moving_at = now
        if now - self.moving_at > STOPPED_S:
            raise ServerLost("the server has been stopped")
        if now - self.busy_at > self.limit_s:
            raise ServerLost("the server does not answer")


class Watch:
    """Reports of servers at work on one job, as they come. Every wait here ends: by a report, a loss, or `interrupted`.

    reports: by the server's place. idle_s: seconds in which nothing of the job ran or wanted to. The children of two
    servers take turns, so what one of them did is taken off the time in which the other one slept.
    """

    def __init__(self, servers: Sequence[Server], interrupted: threading.Event) -> None:
        self.servers, self.interrupted = servers, interrupted
        self.reports: dict[int, dict[str, Any]] = {}
        self.idle_s = 0.0
        self._looks: dict[int, dict[str, Any]] = {}
        self._asked: dict[int, Silence] = {}
        self._looked_at = time.monotonic()

    def tick(self, *descriptors: int) -> set[int]:
        """Waits a little for messages and for something to read in the descriptors; gives those of the latter.

        Raises ServerLost, Interrupted.
        """
        if self.interrupted.is_set():
            raise Interrupted("the sandbox was interrupted")
        at_work = [place for place in range(len(self.servers)) if place not in self.reports]
        poll = select.poll()
        for place in at_work:
            poll.register(self.servers[place].control, select.POLLIN)
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(TICK_S * 1000)}
        for place in at_work:
            if self.servers[place].control.fileno() in ready:
                self._hear(place)
        if time.monotonic() - self._looked_at >= TICK_S:
            self._look([place for place in at_work if place not in self.reports])
        return ready.intersection(descriptors)

    def until(self, place: int, may_be_idle_s: float) -> None:
        """Waits for the report of one, or until the job has been idle for too long."""
        while place not in self.reports and self.idle_s <= may_be_idle_s:
            self.tick()

    def stop(self) -> None:
        """Ends what is at work, the last server's first, so that none sees another one end. Waits for the reports."""
        for place, server in reversed(list(enumerate(self.servers))):
            if place not in self.reports:
                tell(server, {"stop": True})
            while place not in self.reports:
                self.tick()

    def _hear(self, place: int) -> None:
        message = heard(self.servers[place])
        if "end" in message:
            self.reports[place] = message
            return
        self._asked.pop(place, None)
        self._looks[place] = message
        if place and message["stopped"]:
            raise ServerLost("the process of the tests has been stopped")
        if self._looks.keys() | self.reports.keys() == set(range(len(self.servers))):
            both_s = min(look["elapsed_s"] for at, look in self._looks.items() if at not in self.reports)
            self.idle_s = both_s - sum(look["elapsed_s"] - look["idle_s"] for look in self._looks.values())

    def _look(self, places: list[int]) -> None:
        self._looked_at = time.monotonic()
        for place in places:
            if place in self._asked:
                self._asked[place].check()
            else:
                self._asked[place] = Silence(self.servers[place])
                tell(self.servers[place], {"look": True})


def heard(server: Server) -> dict[str, Any]:
    """A message that has arrived. Raises ServerLost."""
    try:
        message, _ = wire.receive(server.control)
    except wire.Closed as error:
        raise ServerLost(f"the server ended: {error}") from error
    if "failure" in message:
        raise ServerLost(str(message["failure"]))
    return message


def tell(server: Server, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Sends a message, with copies of descriptors. Raises ServerLost, also where nobody reads it."""
    content = wire.framed(message)
    silence = Silence(server)
    poll = select.poll()
    poll.register(server.control, select.POLLOUT)
    copies = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))  # send_fds drops the flags
    try:
        sent = server.control.sendmsg([content], [copies] if descriptors else [], socket.MSG_DONTWAIT)
        while sent < len(content):
            if poll.poll(TICK_S * 1000):
                sent += server.control.send(memoryview(content)[sent:], socket.MSG_DONTWAIT)
                silence.heard()
            else:
                silence.check()
    except OSError as error:
        raise ServerLost(f"the server is gone: {error}") from error


def hello(server: Server, timeout_s: float, interrupted: threading.Event) -> dict[str, Any]:
    """The first message of a server that starts. Raises ServerLost, Interrupted."""
    silence = Silence(server, timeout_s)
    deadline = time.monotonic() + timeout_s
    poll = select.poll()
    poll.register(server.control, select.POLLIN)
    while not poll.poll(TICK_S * 1000):
        if interrupted.is_set():
            raise Interrupted("the sandbox was interrupted")
        silence.check()
        if time.monotonic() > deadline:
            raise ServerLost("the server does not start")
    return heard(server)
