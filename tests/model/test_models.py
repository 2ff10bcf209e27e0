"""The protocol's models: clean variants have a clean state space, planted mutations are caught. `make models` runs all of every one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).parent / "models"
WHOLE = ["registry", "batches", "fence", "freshness", "l1", "failover", "leases", "takeover"]
SHORT = ["own_writes", "acquire", "wakeups", "throttle", "alone", "force", "jobs"]  # without the variants that their lists call long


@pytest.mark.parametrize("model", [*WHOLE, *SHORT])
def test_model_is_clean_and_its_mutations_are_caught(model: str) -> None:
    """Each variant ends as it is expected to, else the model's program exits with 1."""
    command = [sys.executable, f"{model}.py", "--quiet"] + ["--short"] * (model in SHORT)
    done = subprocess.run(command, cwd=MODELS, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert "0 not as expected" in done.stdout
