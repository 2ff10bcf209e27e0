"""`python -m aiocache_aura`: what can be run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from aiocache_aura.demo import story


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. Without a command argparse prints the usage and exits with 2."""
    parser = argparse.ArgumentParser(prog="python -m aiocache_aura", description="The asyncio cache on Redis and Valkey.")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    demo = commands.add_parser("demo", help="a restaurant platform with and without the cache, every answer checked")
    story.add_options(demo)
    return story.main(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
