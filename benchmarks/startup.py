"""How long `secateur --help` takes in a fresh process, as JSON: median, p10, p90, in ms."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

PROGRAM = "from secateur.cli import main; main(['--help'])"


def one_start_ms(program: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - started) * 1000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="fresh processes, after one warm-up")
    runs = parser.parse_args().runs
    one_start_ms(PROGRAM)
    bare = [one_start_ms("pass") for _ in range(runs)]
    times = [one_start_ms(PROGRAM) for _ in range(runs)]
    deciles = statistics.quantiles(times, n=10)
    row = {
        "runs": runs,
        "help_ms": round(statistics.median(times), 1),
        "p10_ms": round(deciles[0], 1),
        "p90_ms": round(deciles[-1], 1),
        "python_alone_ms": round(statistics.median(bare), 1),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
