"""Checks every answer: that it is not too old, not too new, and what the database said at its version.

What the library promises is that once an invalidation has returned, no read that begins afterwards is served anything older. So the ledger
writes down, when a change has returned, the version it made of all that it is about; a question that begins later must be answered with
that version or a later one. And since an answer tells its version, what was in it can be asked of the database again: of a fresh copy, on
which all changes are made once more.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict

from aiocache_aura.demo.database import Answer
from aiocache_aura.demo.requests import Request
from aiocache_aura.demo.restaurants import Restaurants


class Ledger:
    """What has happened to each restaurant's data, and so what an answer may be."""

    def __init__(self) -> None:
        self.checked = 0
        self.violations: list[str] = []
        self._begun: Counter[int] = Counter()
        self._returned: defaultdict[tuple[int, str], int] = defaultdict(int)
        self._changes: defaultdict[int, dict[int, Request]] = defaultdict(dict)
        self._answers: defaultdict[tuple[int, int], dict[Request, str]] = defaultdict(dict)

    def __repr__(self) -> str:
        return f"<Ledger {self.checked} checked, {len(self.violations)} violations>"

    def begins(self, request: Request) -> int:
        """A request is about to be made; the oldest version that it may be answered with."""
        if request.is_change:
            self._begun[request.restaurant_id] += 1
        return max(self._returned[request.restaurant_id, about] for about in request.about)

    def changed(self, request: Request, version: int) -> None:
        """A change is committed, and what it made old has been invalidated."""
        self._changes[request.restaurant_id][version] = request
        for about in request.about:
            place = request.restaurant_id, about
            self._returned[place] = max(self._returned[place], version)

    def check(self, request: Request, answer: Answer, oldest: int) -> None:
        """An answer has come to a question for which `begins` said `oldest`."""
        self.checked += 1
        newest = self._begun[request.restaurant_id]  # each change makes one version, and none has been made by those not begun
        if not oldest <= answer.as_of <= newest:
            self.violations.append(f"{request} was answered as of version {answer.as_of}, not of {oldest} to {newest}")
        first = self._answers[request.restaurant_id, answer.as_of].setdefault(request, repr(answer))
        if first != repr(answer):
            self.violations.append(f"{request} had two answers as of version {answer.as_of}: {first} and {answer}")

    def audit(self, copy: Restaurants) -> int:
        """Make all changes again, on a copy of the first database, and put each question again at each version that answered it.

        How many questions that were; those that had been answered often at one version are put once.
        """
        for restaurant_id in {restaurant_id for restaurant_id, _ in self._answers}:
            changes = self._changes[restaurant_id]
            self._compare(copy, self._answers[restaurant_id, 0])
            for version in range(1, max(changes, default=0) + 1):
                _call(copy, changes[version])
                self._compare(copy, self._answers[restaurant_id, version])
        return sum(map(len, self._answers.values()))

    def _compare(self, copy: Restaurants, answers: dict[Request, str]) -> None:
        for request, told in answers.items():
            if told != (truth := repr(_call(copy, request))):
                self.violations.append(f"{request} was answered {told}, but the database says {truth}")


def _call(back_end: Restaurants, request: Request) -> object:
    """The function itself, without what the decorators have made of it: no cache, no invalidation, no thread."""
    return inspect.unwrap(getattr(Restaurants, request.method))(back_end, *request.args)
