"""Problems whose written-out steps can be told right from wrong."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

from repirl.data.sources import Source


class JudgedProblems(Source):
    """A source that knows whether a line of a response is right."""

    @abstractmethod
    def judge(self, problem: str, response: str) -> list[bool]:
        """Whether each line is right, given the lines before it as they were written: an error is counted once."""

    @abstractmethod
    def written_like(self, other: Self) -> Self:
        """The same problems, each with one right solution in the style of another source's."""
