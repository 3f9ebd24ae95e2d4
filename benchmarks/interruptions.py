"""Trainings killed 25 times and stopped 10 times at random instants, each restarted until it ends.

    python benchmarks/interruptions.py

Prints one JSON line a kind: how many interruptions there were before the training ended with the same bits as one that
nothing interrupted. It takes about 15 minutes on 2 cores.
"""

import os
import subprocess
import sys
from pathlib import Path

from figures import figure

TESTS = Path(__file__).parents[1] / "tests" / "test_resume.py"
KINDS = {
    "kills": (25, "test_killed_at_random_instants_it_ends_with_the_same_bits"),
    "stops": (10, "test_stopped_at_random_instants"),
}


def main() -> None:
    for name, (count, test) in KINDS.items():
        environment = os.environ | {"SSD_ALGO_INTERRUPTIONS": str(count)}
        command = [sys.executable, "-m", "pytest", "-q", f"{TESTS}::{test}"]
        done = subprocess.run(command, env=environment, stdout=sys.stderr, cwd=TESTS.parents[1])
        value = 0 if done.returncode else count
        figure(name, value, count)


if __name__ == "__main__":
    main()
