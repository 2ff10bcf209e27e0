"""The source of truth: a version for each key, shared by processes, that a kill -9 cannot leave half written or locked.

Each process has a counter of its own for each key, and the version of a key is the sum of them: nobody ever waits for anybody. Counters only
grow, so a sum that is taken after another was taken is never smaller, whatever happens in between.
"""

from __future__ import annotations

import mmap
from pathlib import Path

WORD = 8


class Source:
    """The versions, as the process in `slot` sees and raises them. The first word of the file tells every process to stop."""

    def __init__(self, path: Path, *, slots: int, keys: int, slot: int = 0) -> None:
        self._slots, self._keys, self._slot = slots, keys, slot
        size = WORD * (1 + slots * keys)
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._words = memoryview(self._map).cast("Q")

    def version(self, key: int) -> int:
        """What a load that begins now reads."""
        return sum(self._words[1 + key : 1 + self._slots * self._keys : self._keys])

    def write(self, key: int) -> int:
        """A new version of this key; which."""
        self._words[1 + self._slot * self._keys + key] += 1
        return self.version(key)

    @property
    def is_over(self) -> bool:
        return bool(self._words[0])

    def stop(self) -> None:
        """Tell every process to stop."""
        self._words[0] = 1

    def close(self) -> None:
        self._words.release()
        self._map.close()
