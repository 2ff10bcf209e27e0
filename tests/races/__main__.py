"""`python -m tests.races --seed 1 --seconds 60 [--profile NAME] [--one-load process] [--plant FAULT]`. A violation exits 1."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace

from tests.races.conductor import Plan, run
from tests.races.faults import FAULTS
from tests.races.plan import PROFILES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.races", description="Processes that race over one cache, and a check of P1-P3.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--profile", choices=PROFILES, help="what is done; mixed, or what brings the planted fault out")
    parser.add_argument("--one-load", choices=("process", "fleet"), help="where one load of a key has to do; by itself, fleet")
    parser.add_argument("--plant", choices=FAULTS, help="a fault, to see it caught")
    parser.add_argument("--budget", type=float, default=15.0, help="of the managers; with it goes what a caller may wait")
    parser.add_argument("--until-violation", action="store_true", help="end with the first violation")
    parser.add_argument("--keep", action="store_true", help="the logs of the workers")
    given = parser.parse_args()
    profile = given.profile or (FAULTS[given.plant].profile if given.plant else "mixed")
    one_load = given.one_load or (FAULTS[given.plant].one_load if given.plant else "fleet")
    plan = Plan(given.seed, given.seconds, given.processes, profile, one_load, given.plant, given.budget)
    plan = replace(plan, until_violation=given.until_violation, keep=given.keep)
    report = asyncio.run(run(plan))
    print(report)
    return 1 if report.violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
