"""What the check at each store costs: Serializer.encode against bare orjson.dumps, Serializer.decode against bare orjson.loads.

    python -m benchmarks.codec_check [--rounds 15] [--milliseconds 4]

Plain values are what JSON holds exactly: the check is a second look by marshal. Tagged ones hold a datetime, a Decimal, a UUID and a tuple
in each row; bare orjson is given `default=str` for them, and gives text back, so its figures are those of a loss. Models are pydantic's,
against their own JSON. Each round measures every subject in turn, for at least so many milliseconds, so that a slow moment of the machine
hits all; printed are medians in microseconds and their ratios. Every value is seen to come back the same before anything is measured.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import statistics
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson

from aiocache_aura.codecs.compare import difference
from aiocache_aura.codecs.serializers import PLAIN, TAGGED, serializer_for

ZONE = dt.timezone(dt.timedelta(hours=2))
ROW = {
    "id": 123,
    "name": "Margherita",
    "description": "Tomatoes (San Marzano), mozzarella di bufala, basil, olive oil",
    "price": 12.5,
    "available": True,
    "category": None,
}
Subject = Callable[[], Any]


def record(n: int) -> dict[str, Any]:
    return {**ROW, "id": n}


def large_record(n: int) -> dict[str, Any]:
    sizes = {size: {"price": 9.0 + n, "calories": 800 + n, "label": f"{size} size"} for size in ("small", "medium", "large")}
    return {
        **record(n),
        "sizes": sizes,
        "tags": ["pizza", "vegetarian", "classic", "oven"],
        "allergens": ["gluten", "milk"],
        "text": "x" * 160,
    }


def tagged(row: dict[str, Any]) -> dict[str, Any]:
    moment = dt.datetime(2026, 11, 25, 12, 30, row["id"] % 60, tzinfo=ZONE)
    return {**row, "price": Decimal("12.50"), "key": UUID(int=row["id"]), "changed": moment, "position": (row["id"], 7)}


PLAIN_VALUES: dict[str, Any] = {
    "150 B record": record(1),
    "600 B record": large_record(1),
    "20 rows": [record(n) for n in range(20)],
    "43 kB": [large_record(n) for n in range(69)],
}
TAGGED_VALUES = {name: tagged(value) if isinstance(value, dict) else [tagged(row) for row in value] for name, value in PLAIN_VALUES.items()}


def bare_dumps(value: Any) -> bytes:
    return orjson.dumps(value, default=str)


def pairs_of(value: Any, codec: int, dumps: Callable[[Any], bytes]) -> dict[str, tuple[Subject, Subject]]:
    """(ours, bare) for each direction."""
    serializer = serializer_for()
    found, payload = serializer.encode(value)
    if found != codec or difference(value, serializer.decode(found, serializer.schema, payload)):
        raise SystemExit(f"{value!r:.60} did not come back as it is")
    text = dumps(value)
    return {
        "encode": (lambda: serializer.encode(value), lambda: dumps(value)),
        "decode": (lambda: serializer.decode(codec, serializer.schema, payload), lambda: orjson.loads(text)),
    }


def models() -> tuple[dict[str, dict[str, tuple[Subject, Subject]]], dict[str, int]]:
    try:
        import pydantic
    except ImportError:
        return {}, {}
    dish = pydantic.create_model("Dish", id=(int, ...), name=(str, ...), description=(str, ...), price=(float, ...), note=(str, "none"))
    rows = [dish(**{name: part for name, part in record(n).items() if name in dish.model_fields}) for n in range(20)]
    serializer, adapter = serializer_for(list[dish]), pydantic.TypeAdapter(list[dish])
    codec, payload = serializer.encode(rows)
    text = adapter.dump_json(rows)
    ways = {
        "encode": (lambda: serializer.encode(rows), lambda: adapter.dump_json(rows)),
        "decode": (lambda: serializer.decode(codec, serializer.schema, payload), lambda: adapter.validate_json(text)),
    }
    return {"20 models": ways}, {"20 models": len(payload)}


def repeats(call: Subject, seconds: float) -> int:
    """How often it is to be called for a measurement of that length."""
    count = 1
    while (elapsed := once(call, count)) * count < seconds:
        count = max(count * 2, int(seconds / elapsed) + 1)
    return count


def once(call: Subject, count: int) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def measure(
    pairs: dict[tuple[str, str], tuple[Subject, Subject]], rounds: int, seconds: float
) -> dict[tuple[str, str], tuple[float, float]]:
    """Medians (ours, bare) of each pair, in microseconds."""
    counts = {name: [repeats(call, seconds) for call in pair] for name, pair in pairs.items()}
    times: dict[tuple[str, str], list[tuple[float, float]]] = {name: [] for name in pairs}
    for _ in range(rounds):
        for name, (ours, bare) in pairs.items():
            times[name].append((once(ours, counts[name][0]), once(bare, counts[name][1])))
    return {
        name: (statistics.median(a for a, _ in seen) * 1e6, statistics.median(b for _, b in seen) * 1e6) for name, seen in times.items()
    }


def report(title: str, values: dict[str, dict[str, tuple[Subject, Subject]]], sizes: dict[str, int], rounds: int, seconds: float) -> None:
    pairs = {(name, way): pair for name, ways in values.items() for way, pair in ways.items()}
    medians = measure(pairs, rounds, seconds)
    print(f"{title:16s}{'bytes':>8s}{'encode':>12s}{'bare':>10s}{'ratio':>8s}{'decode':>12s}{'bare':>10s}{'ratio':>8s}")
    for name in values:
        figures = ""
        for way in ("encode", "decode"):
            ours, bare = medians[name, way]
            figures += f"{ours:9.2f} us{bare:7.2f} us{ours / bare:7.1f}x"
        print(f"  {name:14s}{sizes.get(name, 0):8,d}{figures}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--milliseconds", type=float, default=4)
    options = parser.parse_args()
    seconds = options.milliseconds / 1e3
    print(f"orjson {importlib.metadata.version('orjson')}")
    for title, values, codec, dumps in (("plain", PLAIN_VALUES, PLAIN, orjson.dumps), ("tagged", TAGGED_VALUES, TAGGED, bare_dumps)):
        subjects = {name: pairs_of(value, codec, dumps) for name, value in values.items()}
        report(title, subjects, {name: len(serializer_for().encode(value)[1]) for name, value in values.items()}, options.rounds, seconds)
    subjects, sizes = models()
    if subjects:
        report("pydantic", subjects, sizes, options.rounds, seconds)


if __name__ == "__main__":
    main()
