"""The documentation is true: its blocks run and print what it shows, its links lead somewhere, and every public name is in it."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import inspect
import io
import re
import sys
import types
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import aiocache_aura
from aiocache_aura import CacheManager, CachePolicy, CacheTTL, RedisClient
from aiocache_aura import cache_manager as desk
from aiocache_aura.policy import NOT_YET, PRESETS
from aiocache_aura.redis_client import DEFAULTS
from aiocache_aura.settings import Settings
from aiocache_aura.stats import Counts

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
GUIDES = [ROOT / "README.md", *DOCS]
PAGES = [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
WHERE = "redis://localhost:6379"  # what the pages say; the tests have a server of their own


def title(path: Path) -> str:
    return str(path.relative_to(ROOT))


class Fence(NamedTuple):
    """A fenced block; `line` is where its first line stands, `output` the text block right behind it."""

    language: str
    line: int
    text: str
    output: str | None


def fences(page: Path) -> list[Fence]:
    lines = page.read_text().splitlines()
    marks = [number for number, line in enumerate(lines) if line.startswith("```")]
    assert len(marks) % 2 == 0, f"{title(page)}: a block is not closed"
    spans = list(zip(marks[::2], marks[1::2], strict=True))
    blocks = [(lines[start][3:].partition(" ")[0], start + 2, "\n".join(lines[start + 1 : end])) for start, end in spans]
    outputs: list[str | None] = [None] * len(blocks)
    for n in range(1, len(blocks)):
        if blocks[n][0] == "text" and not any(line.strip() for line in lines[spans[n - 1][1] + 1 : spans[n][0]]):
            outputs[n - 1] = blocks[n][2]
    return [Fence(*block, output) for block, output in zip(blocks, outputs, strict=True)]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[CacheManager]:
    """The process-wide manager and client, as a new process has them; managers with time to spare, as the machine may be busy."""
    monkeypatch.setitem(Settings.__init__.__kwdefaults__, "budget", 2.0)
    manager = CacheManager.from_environment()
    monkeypatch.setattr(desk, "cache_manager", manager)
    monkeypatch.setattr(RedisClient, "_options", dict(DEFAULTS))
    monkeypatch.delenv("AURA_CACHE_URL", raising=False)
    monkeypatch.delenv("AURA_CACHE_PREFIX", raising=False)
    yield manager


async def run(page: Path, block: Fence, scope: dict[str, Any], url: str) -> str:
    """What a block prints. One that starts a loop of its own runs in a thread; in any other, await stands free."""
    source = "\n" * (block.line - 1) + block.text.replace(WHERE, url)
    code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    with redirect_stdout(io.StringIO()) as printed:
        own_loop = "asyncio.run(" in block.text
        result = await asyncio.to_thread(eval, code, scope) if own_loop else eval(code, scope)
        if inspect.isawaitable(result):
            await result
    return printed.getvalue().replace(url, WHERE).rstrip("\n")


@pytest.mark.parametrize("page", GUIDES, ids=title)
async def test_every_block_runs_and_prints_what_the_page_shows(page, valkey, fresh, monkeypatch) -> None:
    """The python blocks of a page run in order in one namespace, each prints exactly its text block, and nothing is left open."""
    module = types.ModuleType("shop")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    blocks = [block for block in fences(page) if block.language == "python"]
    assert blocks
    try:
        for block in blocks:
            printed = await run(page, block, vars(module), f"redis://{valkey.host}:{valkey.port}")
            assert printed == (block.output or ""), f"{title(page)}:{block.line}"
    finally:
        await fresh.aclose()
        await RedisClient.aclose()


@pytest.mark.parametrize("page", GUIDES, ids=title)
def test_every_block_says_its_language(page) -> None:
    """What is not run is marked as something else than python, so nothing escapes by a misspelt fence."""
    assert {block.language for block in fences(page)} <= {"python", "text", "pycon", "console", "sql"}


def test_readme_is_short_and_comes_to_the_point() -> None:
    """At most 160 lines, the first code by line 30, and both commands."""
    text = (ROOT / "README.md").read_text()
    first = next(block for block in fences(ROOT / "README.md") if block.language == "python")
    assert len(text.splitlines()) <= 160
    assert first.line - 1 <= 30
    assert "memory://" in text.split("```")[1] or "redis" not in first.text
    for command in ("make demo", "make test"):
        assert command in text


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_relative_link_resolves(page) -> None:
    """A link leads to a file of the repository, and its fragment to a heading there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{title(page)} links to {target}"
        assert ROOT in there.parents
        assert not fragment or fragment in anchors(there), f"{title(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_path_that_is_named_exists(page) -> None:
    """Files of the repository that a page names in code, tests and benchmarks above all, are there."""
    for name in re.findall(r"(?<![\w/])((?:tests|benchmarks|examples|docs|aiocache_aura)/[\w/.\-]+)", page.read_text()):
        assert (ROOT / name.rstrip(".").partition("::")[0]).exists(), f"{title(page)} names {name}"
    for module in re.findall(r"python -m (benchmarks\.\w+)", page.read_text()):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), f"{title(page)} names {module}"


@pytest.mark.parametrize("page", DOCS, ids=title)
def test_a_page_begins_with_the_trouble_that_it_removes(page) -> None:
    """Behind its title a page has a paragraph that begins so."""
    lines = page.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[2].startswith("**The trouble:** ")


def code_in_docs() -> set[str]:
    """The words of all code, in blocks and in lines."""
    code = (code for page in DOCS for code in re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), flags=re.DOTALL))
    return {word for each in code for word in re.findall(r"\w+", each)}


@pytest.mark.parametrize("name", aiocache_aura.__all__)
def test_every_public_name_is_in_the_docs(name) -> None:
    """Each name of the package stands somewhere in docs/, as code."""
    assert name in code_in_docs()


@pytest.mark.parametrize("name", Counts().snapshot())
def test_every_counter_is_in_the_docs(name) -> None:
    """Each figure of `stats()` stands in docs/quickstart.md."""
    assert f"`{name}`" in (ROOT / "docs/quickstart.md").read_text()


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Settings)])
def test_every_option_of_a_manager_is_in_the_docs(name) -> None:
    """Each option has a row in docs/redis.md."""
    assert re.search(rf"^\| `{name}` \|", (ROOT / "docs/redis.md").read_text(), flags=re.MULTILINE)


def policy_rows() -> tuple[dict[str, str], dict[str, str]]:
    """The rows of docs/policies.md, by field: those of this version, and those to come."""
    today, later = (ROOT / "docs/policies.md").read_text().split("\n## Not in this version yet\n")
    return tuple(dict(re.findall(r"^\| `(\w+)` \| (.+) \|", part, flags=re.MULTILINE)) for part in (today, later))


@pytest.mark.parametrize("field", dataclasses.fields(CachePolicy), ids=lambda field: field.name)
def test_every_field_of_a_policy_is_explained_where_it_belongs(field) -> None:
    """Each field has a row with its default: among those to come exactly when this version refuses to change it."""
    today, later = policy_rows()
    row = (later if field.name in NOT_YET else today)[field.name]
    shown = "(TimeoutError, OSError, LoadDeadlineError)" if field.name == "stale_on" else repr(field.default)
    shown = {"8388608": "8 MiB", "<Missing.MISSING: 'MISSING'>": "MISSING"}.get(shown, shown.replace("'", '"'))
    assert row.startswith(f"`{shown}` |")


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "test"])
def test_every_preset_is_in_the_docs_with_its_life(name) -> None:
    """Each built-in type has a row with its TTL and the member of CacheTTL."""
    row = re.search(rf"^\| `{name}` \| `CacheTTL\.(\w+)` \| (\d+) \|", (ROOT / "docs/policies.md").read_text(), flags=re.MULTILINE)
    assert row
    assert CacheTTL[row[1]] == int(row[2]) == PRESETS[name].life


async def test_the_permissions_that_the_page_names_are_enough(own_server) -> None:
    """A user with just the ACL of docs/redis.md can do everything that a manager does, and nothing beside its prefix."""
    rule = next(block for block in fences(ROOT / "docs/redis.md") if block.text.startswith("ACL SETUSER app")).text
    server = own_server()
    with server.client() as client:
        client.execute_command(*rule.split())
    url = f"redis://app:password@{server.host}:{server.port}/3"
    async with CacheManager(url, prefix="shop", strict=True, budget=5) as manager:
        assert await manager.set("menu", "a", 1, tags=["x"], ttl="1h")
        assert await manager.get_or_load("menu", "b", lambda: 2, ttl=aiocache_aura.FOREVER) == 2
        assert await manager.mget("menu", ["a", "b"]) == [1, 2]
        assert await manager.add("menu", "c", 3)
        assert await manager.touch("menu", "c", 5)
        assert await manager.set("menu", "c", 3, ttl=aiocache_aura.FOREVER)
        assert await manager.delete("menu", "a") == 1
        assert await manager.invalidate_tags("x")
        assert await manager.invalidate_pattern("menu", "b") == 1
        assert await manager.caches["menu"].clear_namespace(reclaim=True)
    async with CacheManager(url, prefix="other", strict=True, budget=5) as manager:
        with pytest.raises(aiocache_aura.BackendError, match="NOPERM"):
            await manager.set("menu", "a", 1)
