"""`python -m bench`: runs the measurements and prints the machine, Markdown tables, and PASS or FAIL per target."""

import argparse
import gc
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from bench.connection import ClientError
from bench.measurements import connections, delivery, filters, publishing, redis, slow, snapshot
from bench.report import FULL, QUICK, Report, Scale, machine
from bench.server import CLIENT_CORE, ServerError

PARTS: Final[dict[str, Callable[[Scale], Report]]] = {
    "delivery": delivery.measure,
    "connections": connections.measure,
    "filters": filters.measure,
    "slow": slow.measure,
    "publishing": publishing.measure,
    "snapshot": snapshot.measure,
    "streams": redis.measure_streams,
    "redis-latency": redis.measure_latency,
    "nodes": redis.measure_nodes,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every target was met; 1 else, but for a quick run, whose figures mean nothing."""
    options = _parser().parse_args(arguments)
    _prepare()
    print(machine(), end="\n\n", flush=True)
    reports = {}
    for name in options.only or PARTS:
        reports[name] = PARTS[name](QUICK if options.quick else FULL)
        _show(reports[name])
    targets = [target for report in reports.values() for target in report.targets]
    print(*(target.line() for target in targets), sep="\n")
    if options.quick:
        print("A quick run: it shows that the bench works; its figures mean nothing.")
    if options.json:
        content = {name: asdict(report) for name, report in reports.items()}
        options.json.write_text(json.dumps({"machine": machine(), "parts": content}, indent=1))
    return 0 if options.quick or all(target.met for target in targets) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="run this part (may be repeated)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: small, its figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="store the figures")
    return parser


def _prepare() -> None:
    """One core for this process, all the descriptors it may have, and an orderly end on SIGTERM."""
    os.sched_setaffinity(0, {CLIENT_CORE})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    gc.disable()  # a pause of the client's would count as the server's latency; the bench makes no cycles


def _show(report: Report) -> None:
    print(report.table.markdown(), end="\n\n")
    for note in report.notes:
        print(note, end="\n\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (ServerError, ClientError, OSError) as error:
        sys.exit(f"bench: {error}")
