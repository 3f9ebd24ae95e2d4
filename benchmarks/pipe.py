"""Pipe mode beside File mode: images a second, memory, and how long a FIFO goes unread while nobody takes batches.

    python benchmarks/pipe.py [--records N] [--plot FILE]

Prints one JSON line a figure. Records are of 64 pixels, batches of 300, the default image_shape. With 100,000
records it takes about 8 minutes on 2 cores. --plot needs matplotlib, which is not locked.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from figures import figure
from PIL import Image

from ssd_algo.data import recordio
from ssd_algo.data.files import list_folder
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Rules
from ssd_algo.data.loader import Loader, Workers
from ssd_algo.data.pipe import Passes
from ssd_algo.data.records import read_record_channel
from ssd_algo.data.spool import Spool
from ssd_algo.data.stream_loader import StreamLoader

SIDE, SHAPE, BATCH, PAUSE = 64, 300, 32, 60.0
BUDGET = 256 * 10**6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "train" / "train.rec"
        write_records(records, given.records)
        workers = len(os.sched_getaffinity(0))
        files = file_mode(records, workers)
        streamed, memory = pipe_mode(records, given.records, workers)
        figure("pipe_times_file", streamed / files, 0.9)
        figure("pipe", streamed, None, unit="images/s")
        figure("file", files, None, unit="images/s")
        flat = np.asarray([each for _, each in memory[len(memory) // 10 :]])
        figure("pipe_memory_last_times_first", float(flat[-10:].mean() / flat[:10].mean()), 1.05, "lower")
        figure("pipe_memory_most", float(flat.max()), None, "lower", "MB")
        if given.plot:
            plot(memory, given.plot)
        figure("longest_time_unread_in_a_pause_of_60_s", unread(records, workers), None, "lower", "s")


def write_records(path: Path, count: int) -> None:
    """Noise of 64 pixels with one box each."""
    generator = np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    encoded = []
    for _ in range(200):
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, "JPEG")
        encoded.append(file.getvalue())
    box, one, easy = np.asarray([[0.1, 0.1, 0.6, 0.6]], np.float32), np.zeros(1, np.int64), np.zeros(1, bool)
    with path.open("wb") as output:
        for number in range(count):
            recordio.write_record(output, recordio.pack(number, box, one, easy, encoded[number % 200]))


def file_mode(records: Path, workers: int) -> float:
    """Images a second of an epoch."""
    samples = read_record_channel(list_folder("train", records.parent), Rules(1), Findings()).samples
    with Loader(samples, SHAPE, BATCH, workers, seed=0) as loader:
        begun = time.perf_counter()
        count = sum(BATCH for _ in loader.epoch(0))
        return count / (time.perf_counter() - begun)


def stream(records: Path, prefix: Path, budget: int, steps: int, workers: int) -> StreamLoader:
    """A loader over what `ssd-algo feed` writes."""
    passes = Passes("train", str(prefix), Rules(1, headers=False), Spool(budget), {})
    return StreamLoader(passes, Workers([], SHAPE, BATCH, workers, 8, seed=0), BATCH, 8, 1, steps, seed=0)


def pipe_mode(records: Path, count: int, workers: int) -> tuple[float, list[tuple[float, float]]]:
    """Images a second of a pass, and this process's memory (seconds, MB) during it."""
    prefix, memory = records.parent / "pipe", []
    with feeding(prefix, records), stream(records, prefix, BUDGET, -(-count // BATCH), workers) as loader:
        begun = time.perf_counter()
        for number, _ in enumerate(loader.epoch(0)):
            if number % 20 == 0:
                memory.append((time.perf_counter() - begun, resident()))
        return count / (time.perf_counter() - begun), memory


def feeding(prefix: Path, records: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "ssd_algo.cli", "feed", str(prefix), str(records), *more])


def resident() -> float:
    """MB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def unread(records: Path, workers: int) -> float:
    """Longest time in which the stream, of 1 MB a second, does not move while nobody takes a batch."""
    prefix = records.parent / "slow"
    with feeding(prefix, records, "--rate", "1", "--cut", str(int(1e6 * PAUSE) + 5_000_000)) as feeder:
        passes = Passes("train", str(prefix), Rules(1, headers=False), spool := Spool(BUDGET), {})
        loader = StreamLoader(passes, Workers([], SHAPE, BATCH, workers, 8, seed=0), BATCH, 8, 1, 10**6, seed=0)
        with loader:
            next(loader.epoch(0))
            longest, last, at = 0.0, spool.held, time.monotonic()
            until = at + PAUSE
            pause = threading.Event()
            while time.monotonic() < until and feeder.poll() is None:
                pause.wait(0.02)
                if spool.held != last:
                    last, at = spool.held, time.monotonic()
                longest = max(longest, time.monotonic() - at)
        feeder.kill()
    return longest


def plot(memory: list[tuple[float, float]], path: Path) -> None:
    """A picture of memory over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.plot(*zip(*memory, strict=True))
    pyplot.ylim(bottom=0)
    pyplot.xlabel("seconds")
    pyplot.ylabel("MB")
    pyplot.savefig(path)


if __name__ == "__main__":
    main()
