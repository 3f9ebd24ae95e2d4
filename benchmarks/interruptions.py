"""Trainings killed 25 times and stopped 10 times at random instants, and one of three hosts killed 10 times.

Each is restarted until it ends; a host is also cut off from the network, and one stands still.

    python benchmarks/interruptions.py

Prints one JSON line a kind: how many interruptions there were before the training ended with the same bits as one that
nothing interrupted, or, of several hosts, ended on the others in time and then completed. It takes about 25 minutes on
2 cores.
"""

import os
import subprocess
import sys
from pathlib import Path

from figures import figure

TESTS = Path(__file__).parents[1] / "tests"
KINDS = {
    "kills": (25, "test_resume.py::test_killed_at_random_instants_it_ends_with_the_same_bits"),
    "stops": (10, "test_resume.py::test_stopped_at_random_instants"),
    "hosts_killed": (10, "test_hosts.py::test_the_others_end_when_a_host_is_killed"),
    "hosts_cut_off": (1, "test_hosts.py::test_a_host_that_is_cut_off_is_lost"),
    "hosts_paused": (1, "test_hosts.py::test_a_host_that_stands_still_for_half_a_minute_is_waited_for"),
}


def main() -> None:
    for name, (count, test) in KINDS.items():
        environment = os.environ | {"SSD_ALGO_INTERRUPTIONS": str(count), "SSD_ALGO_KILLS": str(max(count, 10))}
        command = [sys.executable, "-m", "pytest", "-q", f"{TESTS}/{test}"]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=TESTS.parent)
        print(done.stdout, file=sys.stderr)
        value = 0 if done.returncode or " skipped" in done.stdout else count
        figure(name, value, count)


if __name__ == "__main__":
    main()
