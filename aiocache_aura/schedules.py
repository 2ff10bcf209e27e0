"""Schedules: when the next run is due.

Due times are points of a grid, whole microseconds since the epoch by the store's clock. A grid of intervals begins with the first run; one
of a cron expression is the calendar's.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from aiocache_aura.errors import ConfigurationError
from aiocache_aura.types import is_number

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _microseconds(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Due times every `interval` seconds, or those of a `cron` expression; exactly one of both is given.

    Cron expressions have five fields, or six with seconds in front, and are the local time's of `timezone`, a name such as "Europe/Vienna"
    or a tzinfo, else of this machine; what a change to and from summer time does to them is Debian cron's (cronsim). They need the extra:
    pip install 'aiocache-aura[cron]'. Each run is put off by chance, by 0 to `jitter` seconds. ConfigurationError for what cannot work.
    """

    interval: float | None = None
    cron: str | None = None
    timezone: str | tzinfo | None = None
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if (self.interval is None) == (self.cron is None):
            raise ConfigurationError("a schedule has either an interval or cron='*/30 * * * *'; give exactly one of both")
        if not _is_finite(self.jitter) or self.jitter < 0:
            raise ConfigurationError(f"jitter={self.jitter!r}: it is the most seconds that a run is put off by, at least 0")
        if self.cron is None:
            self._check_interval()
        else:
            _sim(self.cron, datetime.now(_zone(self.timezone)))

    def _check_interval(self) -> None:
        if not _is_finite(self.interval) or (self.interval or 0) <= 0:
            raise ConfigurationError(f"interval={self.interval!r}: it is a number above 0")
        if self.timezone is not None:
            raise ConfigurationError("timezone= is for cron=: an interval is the same everywhere")
        if self.jitter >= (self.interval or 0):
            raise ConfigurationError(f"jitter={self.jitter!r}: it is less than the {self.interval} seconds from one due time to the next")

    def __str__(self) -> str:
        if self.cron is None:
            return f"every {self.interval:g} s"
        zone = "" if self.timezone is None else f" {self.timezone}"
        return f"cron {' '.join(self.cron.split())}{zone}"

    def after(self, due: int, now: int) -> int:
        """The first due time after `now`, on the grid that `due` is on."""
        if self.cron is not None:
            return self._after_by_calendar(now)
        step = max(round((self.interval or 0.0) * 1e6), 1)
        return due + (now - due) // step * step + step

    def delay(self) -> int:
        """By how many microseconds the next run is put off."""
        return round(random.uniform(0.0, self.jitter) * 1e6)  # noqa: S311

    def _after_by_calendar(self, now: int) -> int:
        """Truncated to the second, `now` is at most a due time itself, and that is not after it."""
        found: datetime = next(_sim(str(self.cron), at(now, _zone(self.timezone))))
        return _microseconds(found.astimezone(UTC) - _EPOCH)


def at(microseconds: int, zone: tzinfo | None = None) -> datetime:
    """A time of the store's clock as an aware datetime, in this machine's zone unless another is given."""
    moment = _EPOCH + timedelta(microseconds=microseconds)
    return moment.astimezone(zone)


def _sim(expression: str, start: datetime) -> Any:
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as exc:
        raise ConfigurationError(f"cron={expression!r} needs cronsim: pip install 'aiocache-aura[cron]'") from exc
    try:
        sim = CronSim(expression, start)
        next(CronSim(expression, start))
    except (CronSimError, StopIteration, AttributeError, TypeError) as exc:
        said = f": {exc}" if str(exc) else ""
        raise ConfigurationError(f"cron={expression!r} is no cron expression{said}; write five fields, such as '*/30 * * * *'") from exc
    return sim


def _zone(zone: str | tzinfo | None) -> tzinfo:
    if zone is None:
        return _HERE
    if isinstance(zone, tzinfo):
        return zone
    try:
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as exc:
        raise ConfigurationError(
            f"timezone={zone!r} is not known here: it is a name such as 'Europe/Vienna' (pip install tzdata?)"
        ) from exc


class _Here(tzinfo):
    """This machine's local time, with its changes to and from summer time, which `datetime.astimezone()` freezes into one offset."""

    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        return None if dt is None else dt.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, dt: datetime | None) -> timedelta | None:
        return None

    def tzname(self, dt: datetime | None) -> str | None:
        return None if dt is None else dt.replace(tzinfo=None).astimezone().tzname()

    def fromutc(self, dt: datetime) -> datetime:
        local = datetime.fromtimestamp((dt.replace(tzinfo=UTC) - _EPOCH).total_seconds())
        return local.replace(microsecond=dt.microsecond, tzinfo=self)


_HERE: Final = _Here()


def _is_finite(value: object) -> bool:
    return is_number(value) and math.isfinite(value)
