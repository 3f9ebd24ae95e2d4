"""Serving beside GluonCV's network, under load, when it starts, stops and is killed, and on requests that are wrong.

    python benchmarks/serving.py [--only PART,...] [--trained BASE [--data DATA]]

Prints one JSON line a figure. Models are made without training: random weights, biases with which a few hundred pairs
of anchor and class are detections, as with a trained model. BASE is the base folder of a training that has ended, DATA
the four channels of the image format, for the accuracy of that model too. With two minutes of load each in float32 and
in int8 it takes about 20 minutes on 2 cores.
"""

import argparse
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from figures import figure
from fuzz import fuzz
from load import Answer, closed_loop, closed_loop_with_pings
from served import (
    GLUONCV,
    OneClient,
    alone,
    encode,
    images_a_second,
    make_artifact,
    parse,
    photo,
    pictures,
    process,
    seconds_of_one,
    serving,
    start_engine,
    start_gluoncv,
)

from ssd_algo import demo
from ssd_algo.contract.container import available_cpus
from ssd_algo.data.boxes import SCORE_THRESHOLD, clip, decode
from ssd_algo.model import artifact

CLIENTS, CROWD = 16, 200
FUZZED_NETWORK = "resnet-18:128"
RIVALS = {"gluoncv": True, "gluoncv_with_default_threads": False}  # whether it has all cores
IN_A_ROW = 3  # requests to a side before it is another's turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts of the whole")
    parser.add_argument("--networks", default="vgg-16:300,resnet-50:512", help="the last one has all the load")
    parser.add_argument("--seconds", type=float, default=60, help="half of a load")
    parser.add_argument("--rounds", type=int, default=10, help="of sides that take turns")
    parser.add_argument("--times", type=int, default=5, help="that the server is started, stopped and killed")
    parser.add_argument("--requests", type=int, default=10_000, help="that are wrong")
    parser.add_argument("--seed", type=int, default=0, help="of the wrong requests")
    parser.add_argument("--image", help="to start in a container too")
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    parts = options.only.split(",")
    networks = options.networks.split(",") if parts != ["fuzz"] else []
    with tempfile.TemporaryDirectory() as folder:
        options.made = {each: Path(folder) / each for each in networks + [FUZZED_NETWORK] * ("fuzz" in parts)}
        for network, base in options.made.items():
            alone(make_artifact, network, base)
        options.served = options.made[networks[-1]] if networks else Path()
        for part in parts:
            PARTS[part](options)


def single(options: argparse.Namespace) -> None:
    """One request at a time beside GluonCV's network, with the threads that suit MXNet best and with its own choice."""
    for network in options.networks.split(","):
        base, name = options.made[network], network.replace(":", "_")
        with ExitStack() as stack:
            sides: dict[str, Callable[[], tuple[float, float]]] = {}
            for precision in artifact.NETWORK_FILES:
                server = stack.enter_context(serving(base, precision))
                sides[precision] = OneClient(server).seconds_and_those_of_the_engine
            for rival, all_cores in RIVALS.items() if parse(network)[0] in GLUONCV else ():
                process_of_it = stack.enter_context(process(start_gluoncv, network, all_cores))
                sides[rival] = lambda it=process_of_it: (it.submit(seconds_of_one).result(), 0.0)
            seen: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
            for number, (side, run) in itertools.product(range(options.rounds + 1), sides.items()):
                times = [run() for _ in range(IN_A_ROW)]
                seen[side] += times if number else []  # the first ones are to warm up
        middle = {side: float(np.median([taken for taken, _ in times])) for side, times in seen.items()}
        for precision, bar in (("float32", 1.7), ("int8", 6)):
            for rival in (each for each in RIVALS if each in seen):
                times_rival = middle[rival] / middle[precision]
                figure(f"{name}_{precision}_times_{rival}", times_rival, bar if RIVALS[rival] else None)
            overhead = float(np.median([taken - engine for taken, engine in seen[precision]]))
            figure(f"{name}_{precision}_overhead", overhead * 1000, 8, "lower", "ms")
        for side, seconds in middle.items():
            figure(f"{name}_{side}_request", seconds * 1000, None, "lower", "ms")


def load(options: argparse.Namespace) -> None:
    """As many clients as a small endpoint has, all the time, beside what the engine does alone."""
    load_of(options.served, "float32", options.seconds, (0.9, 2.5, 0, 0.05, 100))
    load_of(options.served, "int8", options.seconds, (None,) * 5)


def load_of(base: Path, precision: str, seconds: float, bars: Sequence[float | None]) -> None:
    alone_for = min(10.0, seconds / 3)
    engine_rates, rates = [], []
    answers: list[Answer] = []
    pings: list[float] = []
    memory: list[tuple[float, float]] = []  # seconds of load, MB
    with (
        process(start_engine, base / "model", precision) as engine,
        process() as clients,
        serving(base, precision) as server,
    ):
        engine_rates.append(engine.submit(images_a_second, alone_for).result())
        for half in range(2):
            begun = time.monotonic()
            future = clients.submit(closed_loop_with_pings, server.port, photo(), CLIENTS, seconds)
            while not future.done():
                memory.append((half * seconds + time.monotonic() - begun, server.resident()))
                time.sleep(seconds / 100)
            seen, pinged = future.result()
            rates.append(images_a_second_of(seen))
            answers += seen
            pings += pinged
            engine_rates.append(engine.submit(images_a_second, alone_for).result())
    rate, name = float(np.median(rates)), f"load_{precision}"
    latencies = [each.ended - each.begun for each in answers]
    flat = np.asarray([megabytes for at, megabytes in memory if at >= min(60.0, seconds)])
    figure(f"{name}_throughput_times_engine", rate / float(np.median(engine_rates)), bars[0])
    figure(f"{name}_p99_times_fair", float(np.percentile(latencies, 99)) / (CLIENTS / rate), bars[1], "lower")
    figure(f"{name}_errors", sum(each.status != 200 for each in answers), bars[2], "lower")
    figure(f"{name}_memory_growth", float(flat[-5:].mean() / flat[:5].mean() - 1), bars[3], "lower")
    figure(f"{name}_ping_p99", float(np.percentile(pings, 99)) * 1000, bars[4], "lower", "ms")
    figure(f"{name}_throughput", rate, None, unit="images/s")
    figure(f"{name}_p99", float(np.percentile(latencies, 99)) * 1000, None, "lower", "ms")
    figure(f"{name}_memory", float(flat.max()), None, "lower", "MB")


def images_a_second_of(answers: Sequence[Answer]) -> float:
    seconds = max(each.ended for each in answers) - min(each.begun for each in answers)
    return sum(each.status == 200 for each in answers) / seconds


def overload(options: argparse.Namespace) -> None:
    """Many more clients than are taken, none of which waits before it asks again."""
    with serving(options.served) as server, process() as clients:
        one = OneClient(server)
        usual = float(np.median([one.seconds_of_one() for _ in range(3 * IN_A_ROW)]))
        answers = clients.submit(closed_loop, server.port, photo(), CROWD, min(10.0, options.seconds)).result()
        over = time.monotonic()
        while one.seconds_of_one() > 2 * usual and time.monotonic() < over + 60:
            pass
        again = time.monotonic() - over
    others = [each for each in answers if each.status != 200 and not (each.status == 503 and each.may_retry)]
    figure("overload_other_answers", len(others), 0, "lower")
    figure("overload_seconds_until_as_before", again, 1, "lower", "s")
    figure("overload_longest", max(each.ended - each.begun for each in answers), 60, "lower", "s")
    figure("overload_throughput", images_a_second_of(answers), None, unit="images/s")
    figure("overload_refused", sum(each.status == 503 for each in answers), None, "lower")


def ready(options: argparse.Namespace) -> None:
    """From the start of the process to a model that has answered."""
    starts, imports = [], []
    for _ in range(options.times):
        with serving(options.served) as server:
            starts.append(server.wait_until_ready())
        begun = time.monotonic()
        subprocess.run([sys.executable, "-W", "ignore", "-c", "import mxnet"], check=True)
        imports.append(time.monotonic() - begun)
    figure("ready", float(np.median(starts)), 4, "lower", "s")
    figure("ready_times_import_mxnet", float(np.median(starts) / np.median(imports)), None, "lower")
    if options.image:
        contained = [seconds_until_container_is_ready(options.image, options.served) for _ in range(options.times)]
        figure("ready_in_a_container", float(np.median(contained)), 4, "lower", "s")


def seconds_until_container_is_ready(image: str, base: Path) -> float:
    """From `docker run` on."""
    port = demo.free_port()
    mount = f"type=bind,source={base / 'model'},target=/opt/ml/model,readonly"  # -v takes no colon in a path
    options = ["--rm", "-d", "-p", f"127.0.0.1:{port}:8080", "--mount", mount]
    begun = time.monotonic()
    started = subprocess.run(["docker", "run", *options, image, "serve"], check=True, capture_output=True, text=True)
    try:
        while not demo.is_ready(f"http://127.0.0.1:{port}"):
            time.sleep(0.02)
        return time.monotonic() - begun
    finally:
        subprocess.run(["docker", "rm", "-f", started.stdout.strip()], check=True, capture_output=True)


def accuracy(options: argparse.Namespace) -> None:
    """OpenVINO's float32 network beside MXNet's, and a trained model's int8 beside both."""
    models = dict(options.made) | ({"trained": options.trained} if options.trained else {})
    for network, base in models.items():
        samples = [options.data, base] if options.data and network == "trained" else []
        score, pixels, lone = alone(largest_differences, base / "model", *samples)
        name = network.replace(":", "_")
        figure(f"{name}_largest_difference_of_scores", score, 1e-3, "lower")
        figure(f"{name}_largest_difference_of_boxes", pixels, 0.5, "lower", "pixels")
        figure(f"{name}_difference_of_counts", lone, None, "lower")
        if samples:
            figure("trained_map_lost_by_int8", alone(points_lost, *samples), 0.5, "lower", "points")


def largest_differences(model: Path, *samples: Path) -> tuple[float, float, int]:
    """Of scores, of corners in pixels, and of numbers of detections, over 20 pictures.

    Over all pairs of anchor and class that either side takes for a detection, before non-maximum suppression: an anchor
    is the same on both sides, whatever the order of two equal scores.
    """
    from ssd_algo.inference import predictor

    engine, reference = predictor.load(model, threads=available_cpus()), predictor.load_reference(model)
    encoded = (
        [each.encoded() for each in read(*samples)[:20]] if samples else [encode(each) for each in pictures(20, 1)]
    )
    anchors = artifact.load_parameters(model)["anchors"][0]
    most_score, most_pixels, lone = 0.0, 0.0, 0
    for each in encoded:
        picture = engine.prepare(each)
        scores, boxes, counts = [], [], []
        for side in (engine, reference):
            (logits,), (offsets,) = side.forward(picture.square[None])
            exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores.append((exponentials / exponentials.sum(axis=1, keepdims=True))[:, 1:])
            boxes.append(clip(decode(offsets, anchors), 1, 1) * ([picture.width, picture.height] * 2))
            counts.append(len(side.select(logits, offsets).scores))
        found = np.maximum(*scores) >= SCORE_THRESHOLD
        most_score = max(most_score, float(np.abs(scores[0] - scores[1])[found].max(initial=0)))
        most_pixels = max(most_pixels, float(np.abs(boxes[0] - boxes[1])[found.any(axis=1)].max(initial=0)))
        lone += abs(counts[0] - counts[1])
    return most_score, most_pixels, lone


def read(data: Path, base: Path) -> Sequence[Any]:
    """Samples of the validation channel."""
    from ssd_algo.data.annotations import read_image_channel
    from ssd_algo.data.files import list_folder
    from ssd_algo.data.findings import Findings
    from ssd_algo.data.labels import Rules

    folders = [list_folder(name, data / name) for name in ("validation", "validation_annotation")]
    rules = Rules(artifact.describe(base / "model").num_classes)
    return read_image_channel(folders[0], folders[1], rules, Findings()).samples


def points_lost(data: Path, base: Path) -> float:
    """By how much int8 has a lower mAP than float32, of 100."""
    from ssd_algo.evaluation.evaluate import compare, score
    from ssd_algo.inference import predictor

    found = {}
    for precision in artifact.NETWORK_FILES:
        detector = predictor.load(base / "model", precision, threads=available_cpus())
        compared = []
        for sample in read(data, base):
            compared.append(compare(sample, detector.detect(detector.prepare(sample.encoded()).square[None])[0]))
        found[precision] = score(compared, 0.5).mean
    print(f"mAP: {found}", file=sys.stderr)
    return 100 * (found["float32"] - found["int8"])


def stop(options: argparse.Namespace) -> None:
    """SIGTERM under load: no request that was sent before may be lost."""
    lost, seconds, codes, sent = 0, [], [], 0
    generator = np.random.default_rng(0)
    for _ in range(options.times):
        with serving(options.served) as server, process() as clients:
            future = clients.submit(closed_loop, server.port, photo(), CLIENTS, 8, True)
            time.sleep(4 + generator.uniform(0, 2))  # the clients' process needs a second to start
            signalled = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            codes.append(server.process.wait(60))
            seconds.append(time.monotonic() - signalled)
            before = [each for each in future.result() if 0 < each.sent < signalled < each.ended]
            sent += len(before)
            lost += sum(each.status != 200 for each in before)
    figure("stop_lost", lost, 0, "lower")
    figure("stop_exit_code", max(map(abs, codes)), 0, "lower")
    figure("stop_seconds", max(seconds), 30, "lower", "s")
    figure("stop_in_flight", sent, None)


def kill(options: argparse.Namespace) -> None:
    """SIGKILL of the worker under load: only what it had may be lost."""
    lost, in_flight, seconds = 0, 0, []
    generator = np.random.default_rng(0)
    for _ in range(options.times):
        with serving(options.served) as server, process() as clients:
            future = clients.submit(closed_loop, server.port, photo(), CLIENTS, 14)
            time.sleep(4 + generator.uniform(0, 2))
            killed = time.monotonic()
            os.kill(server.worker(), signal.SIGKILL)
            answers = [each for each in future.result() if each.ended > killed]
        # Who was connected to the worker loses what is on the way; who connects then must not notice.
        in_flight += sum(each.connected < killed and each.status != 200 for each in answers)
        after = [each for each in answers if each.connected > killed]
        lost += sum(each.status != 200 for each in after)
        seconds.append(min((each.ended for each in after if each.status == 200), default=np.inf) - killed)
    figure("kill_lost", lost, 0, "lower")
    figure("kill_seconds_until_answered", max(seconds), 5, "lower", "s")
    figure("kill_in_flight", in_flight, None, "lower")


def wrong_requests(options: argparse.Namespace) -> None:
    """Requests that are wrong in some way, which must not harm the server."""
    early = min(2000, options.requests // 5)
    with serving(options.made[FUZZED_NETWORK]) as server, process() as clients:
        worker = server.worker()
        seen = clients.submit(fuzz, server.port, options.seed, 0, early).result()
        before = server.resident()
        seen += clients.submit(fuzz, server.port, options.seed, early, options.requests).result()
        after, same = server.resident(), server.worker() == worker and server.process.poll() is None
        OneClient(server).seconds_of_one()
        log = server.log.read_text()
    failed = [each for each in seen if any(status >= 500 and status != 503 for status in each.statuses)]
    lost = [each for each in seen if each.lost]
    for each in (*failed[:20], *lost[:20]):
        print(f"request {each.number} ({each.kind}): {each.statuses} {each.excerpt}", file=sys.stderr)
    statuses = Counter(status for each in seen for status in each.statuses)
    print(f"statuses: {dict(sorted(statuses.items()))}", file=sys.stderr)
    figure("fuzz_failed", len(failed), 0, "lower")
    figure("fuzz_crashes", int(not same), 0, "lower")
    figure("fuzz_lost", len(lost), 0, "lower")
    figure("fuzz_tracebacks_in_the_log", log.count("Traceback"), 0, "lower")
    figure("fuzz_memory_growth", after / before - 1, 0.10, "lower")
    figure("fuzz_memory", after, None, "lower", "MB")


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "single": single,
    "load": load,
    "overload": overload,
    "ready": ready,
    "accuracy": accuracy,
    "stop": stop,
    "kill": kill,
    "fuzz": wrong_requests,
}


if __name__ == "__main__":
    main()
