"""The floors of the house: who may import whom. Any lower floor and one's own, never upwards, no cycle; lazy imports count."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "aiocache_aura"

# From the top. A module that is not here fails the test: give it a floor.
FLOORS = [
    {"aiocache_aura", "aiocache_aura.__main__", "aiocache_aura.demo", "aiocache_aura.demo.database", "aiocache_aura.demo.figures",
     "aiocache_aura.demo.ledger", "aiocache_aura.demo.lives", "aiocache_aura.demo.requests", "aiocache_aura.demo.restaurants",
     "aiocache_aura.demo.story", "aiocache_aura.demo.traffic", "aiocache_aura.testing", "aiocache_aura.testing.server",
     "aiocache_aura.integrations", "aiocache_aura.integrations.asgi", "aiocache_aura.integrations.metrics",
     "aiocache_aura.integrations.opentelemetry", "aiocache_aura.integrations.prometheus", "aiocache_aura.integrations.reading"},
    {"aiocache_aura.decorators", "aiocache_aura.cached_function", "aiocache_aura.cached", "aiocache_aura.invalidating",
     "aiocache_aura.cache_manager", "aiocache_aura.namespace", "aiocache_aura.registry", "aiocache_aura.using", "aiocache_aura.providing",
     "aiocache_aura.verbs", "aiocache_aura.desk", "aiocache_aura.deferral", "aiocache_aura.engines", "aiocache_aura.backend",
     "aiocache_aura.cache_warmer", "aiocache_aura.warming", "aiocache_aura.warming_steps", "aiocache_aura.sources",
     "aiocache_aura.progress", "aiocache_aura.warming_pace", "aiocache_aura.jobs", "aiocache_aura.scheduling",
     "aiocache_aura.monitoring", "aiocache_aura.watching", "aiocache_aura.report", "aiocache_aura.published", "aiocache_aura.health",
     "aiocache_aura.hot", "aiocache_aura.recipes", "aiocache_aura.loaders"},
    {"aiocache_aura.engine", "aiocache_aura.writes", "aiocache_aura.entries", "aiocache_aura.generations",
     "aiocache_aura.terms", "aiocache_aura.looking", "aiocache_aura.loading",
     "aiocache_aura.loaded", "aiocache_aura.counting",
     "aiocache_aura.planting", "aiocache_aura.removals", "aiocache_aura.renewing"},
    {"aiocache_aura.redis_client", "aiocache_aura.stores", "aiocache_aura.stores.base", "aiocache_aura.stores.connections",
     "aiocache_aura.stores.lanes", "aiocache_aura.stores.memory", "aiocache_aura.stores.pooled", "aiocache_aura.stores.redis",
     "aiocache_aura.stores.replies", "aiocache_aura.stores.requests", "aiocache_aura.stores.leases", "aiocache_aura.stores.followers",
     "aiocache_aura.stores.scripts",
     "aiocache_aura.stores.notes", "aiocache_aura.stores.boards", "aiocache_aura.stores.jobs", "aiocache_aura.stores.rota",
     "aiocache_aura.stores.commands", "aiocache_aura.stores.probes", "aiocache_aura.stores.statistics"},
    {"aiocache_aura.stores.sieve", "aiocache_aura.resilience", "aiocache_aura.resilience.single_flight",
     "aiocache_aura.resilience.fail_safe", "aiocache_aura.resilience.threads",
     "aiocache_aura.timeline", "aiocache_aura.recorder", "aiocache_aura.events"},
    {"aiocache_aura.keys", "aiocache_aura.owner", "aiocache_aura.policy", "aiocache_aura.settings", "aiocache_aura.stats",
     "aiocache_aura.histogram", "aiocache_aura.warm_report", "aiocache_aura.schedules", "aiocache_aura.advice", "aiocache_aura.heat",
     "aiocache_aura.diagnosis", "aiocache_aura.ledger",
     "aiocache_aura.freshness", "aiocache_aura.codecs.failures", "aiocache_aura.signatures", "aiocache_aura.templates",
     "aiocache_aura.declared",
     "aiocache_aura.codecs", "aiocache_aura.codecs.envelope", "aiocache_aura.codecs.serializers",
     "aiocache_aura.codecs.tagged", "aiocache_aura.codecs.shapes", "aiocache_aura.codecs.compare", "aiocache_aura.codecs.annotations"},
    {"aiocache_aura.errors", "aiocache_aura.clock", "aiocache_aura.context", "aiocache_aura.types"},
]  # fmt: skip
FLOOR_OF = {module: number for number, floor in enumerate(FLOORS) for module in floor}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path: Path) -> set[str]:
    """The modules of ours that a module imports, wherever it does; those for type checkers only don't count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are written out"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_no_higher_floor(module: str) -> None:
    """Every module has a floor, and imports only from its own and lower ones."""
    assert module in FLOOR_OF, f"{module} has no floor: add it to FLOORS in {Path(__file__).name}"
    upwards = {other for other in imports_of(MODULES[module]) if FLOOR_OF[other] < FLOOR_OF[module]}
    assert not upwards, f"{module} imports from a higher floor: {upwards}"


def test_no_module_imports_itself_in_a_circle() -> None:
    """There is an order in which every module comes after all that it imports."""
    left = {module: imports_of(path) - {module} for module, path in MODULES.items()}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"cycle among: {sorted(left)}"
