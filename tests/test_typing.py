"""What type checkers make of the public API: right usages pass, wrong ones are rejected, and both at run time as well.

tests/typing holds what is checked, strictly: `usage_ok` and `static` have no error, in `usage_wrong` each line marked `# wrong` has one.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import aiocache_aura
from aiocache_aura import cached_function, decorators, settings
from aiocache_aura.cached import CacheOptions
from aiocache_aura.invalidating import InvalidateOptions
from aiocache_aura.policy import CachePolicy, DecoratorOverrides, PolicyOverrides
from aiocache_aura.settings import Options, Settings
from aiocache_aura.types import TTL

FILES = Path(__file__).parent / "typing"
BIN = Path(sys.executable).parent
# Complaints that a slip of ours would cause, and that do not count as having understood what is wrong with a line.
SLIPS = re.compile(
    r"name-defined|import|syntax|no-untyped|no-any|reportUn(known|used|defined)(?!Coroutine)|reportMissing|reportAttribute.*module"
)


class Finding(typing.NamedTuple):
    file: str
    line: int
    rule: str
    message: str


def found_by_mypy(cache: Path) -> list[Finding]:
    options = ["--strict", "--warn-unreachable", "--python-version=3.11", "--config-file=", f"--cache-dir={cache}", "--output=json"]
    shown = run([BIN / "mypy", *options, *sorted(FILES.glob("*.py"))])
    findings = [json.loads(line) for line in shown.splitlines()]
    return [Finding(Path(f["file"]).stem, f["line"], f["code"] or "", f["message"]) for f in findings if f["severity"] == "error"]


def found_by_pyright(_: Path) -> list[Finding]:
    shown = json.loads(run([BIN / "pyright", "--outputjson", f"--pythonpath={sys.executable}", *sorted(FILES.glob("*.py"))]))
    assert shown["summary"]["filesAnalyzed"] == 3
    return [
        Finding(Path(f["file"]).stem, f["range"]["start"]["line"] + 1, f.get("rule", "syntax"), f["message"])
        for f in shown["generalDiagnostics"]
        if f["severity"] in ("error", "warning")
    ]


def run(command: list) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=FILES.parents[1])
    assert ended.returncode == 1, f"it was to find what is wrong: {ended.stdout}{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module", params=[found_by_mypy, found_by_pyright], ids=["mypy", "pyright"])
def findings(request, tmp_path_factory) -> list[Finding]:
    return request.param(tmp_path_factory.mktemp("checked"))


@pytest.mark.parametrize("file", ["usage_ok", "static"])
def test_right_usages_have_no_error(findings, file):
    """What the contract allows passes mypy --strict and pyright strict, with the types that it says."""
    assert [f for f in findings if f.file == file] == []


def test_wrong_usages_are_rejected_and_nothing_else_is(findings):
    """Each line marked `# wrong` is rejected for what is wrong with it; no other line is."""
    lines = (FILES / "usage_wrong.py").read_text().splitlines()
    marked = {n: line.strip() for n, line in enumerate(lines, 1) if "# wrong" in line}
    rejected = {f.line for f in findings if f.file == "usage_wrong" and not SLIPS.search(f.rule)}
    assert [line for n, line in marked.items() if n not in rejected] == []
    assert [f for f in findings if f.file == "usage_wrong" and f.line not in marked] == []
    assert len(marked) >= 60


@pytest.mark.parametrize("file", ["usage_ok", "static"])
async def test_right_usages_run(file):
    """What type checkers accept works: the same file runs, over `memory://`."""
    await importlib.import_module(f"tests.typing.{file}").main()


def test_overrides_are_the_fields_of_a_policy():
    """`PolicyOverrides`, which decorators and verbs take, has the fields of `CachePolicy` in the same order, and the same types.

    Only `ttl` takes None as well, which means the policy's; to a decorator it may be a function of the result, too.
    """
    fields, overrides = typing.get_type_hints(CachePolicy), typing.get_type_hints(PolicyOverrides)
    assert list(overrides) == [field.name for field in dataclasses.fields(CachePolicy)]
    of_decorator = typing.get_type_hints(DecoratorOverrides)
    assert list(of_decorator) == list(overrides)
    assert of_decorator.pop("ttl") == fields["ttl"] | Callable[[Any], TTL] | None
    assert overrides.pop("ttl") == fields["ttl"] | None
    assert of_decorator == overrides
    assert overrides == {name: hint for name, hint in fields.items() if name != "ttl"}
    assert PolicyOverrides.__required_keys__ == frozenset()


def test_options_are_the_fields_of_settings(monkeypatch):
    """`Options`, the keywords of a manager, has the fields of `Settings`, but for the URL and the client, which are parameters."""
    from redis.asyncio import Redis, RedisCluster

    monkeypatch.setattr(settings, "Redis", Redis, raising=False)
    monkeypatch.setattr(settings, "RedisCluster", RedisCluster, raising=False)
    fields, options = typing.get_type_hints(Settings), typing.get_type_hints(Options)
    assert fields.pop("url") and fields.pop("client")
    assert (list(options), options) == (list(fields), fields)
    assert Options.__required_keys__ == frozenset()


def test_overloads_name_the_options_that_decorators_know():
    """What `cache` and `cache_menu` are typed to take is what they take at run time, and so for `invalidate_cache`."""
    known = {field.name for field in dataclasses.fields(CacheOptions)}
    of_cache = inspect.signature(typing.get_overloads(decorators.cache)[-1]).parameters
    call = SimpleNamespace(__module__=decorators.__name__, __qualname__="NamedCacheDecorator.__call__")  # a protocol's: not to be had
    of_named = inspect.signature(typing.get_overloads(call)[-1]).parameters
    assert set(of_cache) == known
    assert set(of_named) - {"self"} == known - {"cache_type"} == {*decorators._OWN, "policy"}
    assert [of_named[name] for name in decorators._OWN] == [of_cache[name] for name in decorators._OWN]
    of_invalidate = inspect.signature(aiocache_aura.invalidate_cache).parameters
    assert set(of_invalidate) == {field.name for field in dataclasses.fields(InvalidateOptions)}


def test_every_verb_is_there_however_a_function_is_reached():
    """Plain functions, bound methods and methods of a class carry the same verbs."""

    def verbs(cls):
        return {
            name for base in cls.__mro__ for name in vars(base) if base.__module__ == cached_function.__name__ and not name.startswith("_")
        }

    bound, by_class = verbs(cached_function.BoundCached), verbs(cached_function.ClassAccess)
    assert bound == by_class == set(cached_function._VERBS)

    @aiocache_aura.cache(name="typing.verbs")
    async def function() -> int: ...

    assert all(callable(getattr(function, verb)) for verb in bound)
    assert {verb for verb in vars(function) if not verb.startswith("_")} == bound
