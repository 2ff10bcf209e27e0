"""The source of truth: a version for each key, shared by processes, that a kill -9 cannot leave half written or locked.

Each process has a counter of its own for each key, and the version of a key is the sum of them: nobody ever waits for anybody. Counters
only grow, so a sum that is taken after another was taken is never smaller, whatever happens in between. In front of them is the time of the
run: when it begins, when it ends, and whether the end is urgent.
"""

from __future__ import annotations

import mmap
from pathlib import Path

WORD = 8
HEAD = 3


class Source:
    """The versions, as the process in `slot` sees and raises them."""

    def __init__(self, path: Path, *, slots: int, keys: int, slot: int = 0) -> None:
        self._slots, self._keys, self._slot = slots, keys, slot
        size = WORD * (HEAD + slots * keys)
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._words = memoryview(self._map).cast("Q")

    def version(self, key: int) -> int:
        """What a load that begins now reads."""
        return sum(self._words[HEAD + key :: self._keys])

    def write(self, key: int) -> int:
        """A new version of this key; which."""
        self._words[HEAD + self._slot * self._keys + key] += 1
        return self.version(key)

    # The time of the run, of CLOCK_MONOTONIC in nanoseconds

    @property
    def begins(self) -> int:
        """0 as long as it is not known."""
        return self._words[0]

    @property
    def ends(self) -> int:
        return self._words[1]

    @property
    def is_urgent(self) -> bool:
        """Whether nobody is to wait long any more for callers that have no answer yet."""
        return self._words[2] != 0

    def begin(self, at: int, ends: int) -> None:
        self._words[1], self._words[0] = ends, at

    def stop(self, at: int, *, urgently: bool = False) -> None:
        self._words[2], self._words[1] = urgently, min(at, self.ends)

    def close(self) -> None:
        self._words.release()
        self._map.close()
