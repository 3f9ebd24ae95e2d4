"""What benchmarks/serving.py measures: models that nobody trained, a server, and what it is measured against.

Each is in a process of its own: what measures has neither MXNet nor OpenVINO, and a side has all cores in its turn.
"""

import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from load import connect, post

from ssd_algo import demo
from ssd_algo.contract.container import available_cpus, set_up_mxnet
from ssd_algo.data.boxes import SCORE_THRESHOLD
from ssd_algo.data.images import Pixels, decode_square, to_square
from ssd_algo.model import artifact

SERVE = [sys.executable, str(Path(__file__).parents[1] / "scripts" / "serve")]
WIDTH, HEIGHT, CLASSES = 640, 480, 20
DETECTED_PAIRS = 300  # of anchor and class in the picture that is sent
GLUONCV = {"vgg-16": "ssd_300_vgg16_atrous_voc", "resnet-50": "ssd_512_resnet50_v1_voc"}


def pictures(count: int, seed: int = 0) -> list[Pixels]:
    generator = np.random.default_rng(seed)
    return [demo.draw_sample(generator, WIDTH, HEIGHT)[0] for _ in range(count)]


def photo() -> bytes:
    """The picture that is sent, about 110 kB."""
    return encode(pictures(1)[0])


def encode(picture: Pixels) -> bytes:
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return encoded.tobytes()


def parse(network: str) -> tuple[str, int]:
    base_network, side = network.split(":")
    return base_network, int(side)


def make_artifact(network: str, base: Path) -> None:
    """Write a model that nobody trained, with both networks for serving."""
    base_network, side = parse(network)
    set_up_mxnet(one_shape=True)
    warnings.simplefilter("ignore")
    import mxnet as mx

    from ssd_algo.inference import predictor
    from ssd_algo.inference.calibrate import calibrated
    from ssd_algo.inference.engines import MXNetEngine
    from ssd_algo.model import network as networks
    from ssd_algo.model.export import deploy_symbol

    made = networks.build_network(base_network, side, CLASSES)
    values = networks.initial_parameters(made, side, np.random.default_rng(0)) | networks.constants(made)
    squares = np.stack([to_square(each, side) for each in pictures(20)])
    adaptive = networks.with_momentum_of_statistics(made, 0)
    block = mx.gluon.SymbolBlock(adaptive.symbol, [mx.sym.var("data")])
    networks.set_parameters(block, values, [mx.cpu()])
    block.collect_params().setattr("grad_req", "null")
    take_statistics(block, mx.nd.array(squares[:8].transpose(0, 3, 1, 2)))
    values |= {name: each.data().asnumpy() for name, each in block.collect_params().items()}
    square = decode_square(photo(), side)[0][None]
    bias = background_bias(MXNetEngine(made.symbol, mx.cpu(), values)(square)[0][0])
    for name in values:
        if networks.is_class_head(name) and name.endswith("_bias"):
            values[name].reshape(-1, CLASSES + 1)[:, 0] = bias
    described = {
        "num_classes": str(CLASSES),
        "base_network": base_network,
        "image_shape": str(side),
        "nms_threshold": "0.45",
        "nms_topk": "400",
    }
    model = base / "model"
    artifact.save(model, deploy_symbol(made, CLASSES, 0.45, 400), values, described, {})
    float32 = artifact.exported(model)
    artifact.save_network(model, "float32", float32.SerializeToString())
    int8 = calibrated(float32, side, squares, available_cpus())
    artifact.save_network(model, "int8", int8.SerializeToString())
    found = {each: len(predictor.load(model, each).detect(square)[0].scores) for each in artifact.NETWORK_FILES}
    print(f"{network}: {found} detections, background's bias {bias:.1f}", file=sys.stderr)


def take_statistics(block: Any, images: Any) -> None:
    """Give BatchNorm layers without momentum the statistics of these images: it does so on the way back."""
    import mxnet as mx

    images.attach_grad()
    with mx.autograd.record():
        outputs = block(images)
    mx.autograd.backward(list(outputs))
    mx.nd.waitall()


def background_bias(logits: np.ndarray) -> float:
    """That of background, now 0, with which the best `DETECTED_PAIRS` pairs reach the threshold; logits (A, C + 1)."""
    margins = np.sort((logits[:, 1:] - logits[:, :1]).reshape(-1))
    return float(margins[-DETECTED_PAIRS] + np.log((1 - SCORE_THRESHOLD) / SCORE_THRESHOLD))


_forward: Callable[[], Any]  # of a side's own process


def process(start: Callable[..., None] | None = None, *about: Any) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), start, about)


def alone(function: Callable[..., Any], *about: Any) -> Any:
    """What a function returns in a process that ends with it."""
    with process() as child:
        return child.submit(function, *about).result()


def start_gluoncv(network: str, all_cores: bool) -> None:
    """Make GluonCV's own network ready, as its users run it, with decoding and non-maximum suppression inside.

    Left alone MXNet takes half of the cores, as if each were a hyper-thread.
    """
    global _forward
    base_network, side = parse(network)
    if all_cores:
        set_up_mxnet(one_shape=True)
    warnings.simplefilter("ignore")
    import mxnet as mx
    from gluoncv import model_zoo

    net = model_zoo.get_model(GLUONCV[base_network], pretrained=False, pretrained_base=False)
    net.initialize()
    image = to_square(pictures(1)[0], side).transpose(2, 0, 1)[None] / 255
    mean, std = (np.reshape(each, (1, 3, 1, 1)) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    image = mx.nd.array((image - mean) / std)
    net(image)  # shapes are known from then on
    generator = np.random.default_rng(0)
    for name, parameter in net.collect_params(".*weight|.*gamma").items():
        deviation = np.sqrt(2 / np.prod(parameter.shape[1:]))
        value = np.ones(parameter.shape) if name.endswith("gamma") else generator.normal(0, deviation, parameter.shape)
        parameter.set_data(mx.nd.array(value))
    logits = []
    for feature, classes, boxes in zip(net.features(image), net.class_predictors, net.box_predictors, strict=True):
        for head in (classes, boxes):
            weight = head.predictor.weight
            weight.set_data(weight.data() * (0.5 / float(head(feature).asnumpy().std())))
        logits.append(classes(feature).transpose((0, 2, 3, 1)).asnumpy().reshape(-1, CLASSES + 1))
    bias = background_bias(np.concatenate(logits))
    for head in net.class_predictors:
        values = head.predictor.bias.data().asnumpy()
        values.reshape(-1, CLASSES + 1)[:, 0] = bias
        head.predictor.bias.set_data(mx.nd.array(values))
    net.hybridize(static_alloc=True, static_shape=True)
    _forward = lambda: [each.asnumpy() for each in net(image)]  # noqa: E731
    rows = int((_forward()[0] >= 0).sum())
    print(f"GluonCV, {network}: {rows} detections, background's bias {bias:.1f}", file=sys.stderr)


def start_engine(model: Path, precision: artifact.Precision) -> None:
    """Make the engine ready, with its largest batch."""
    global _forward
    from ssd_algo.inference import predictor

    loaded = predictor.load(model, precision, threads=available_cpus())
    size = loaded.batches[-1]
    squares = np.stack([to_square(each, loaded.image_shape) for each in pictures(size)])
    _forward = lambda: len(loaded.forward(squares)[0])  # noqa: E731


def seconds_of_one() -> float:
    begun = time.perf_counter()
    _forward()
    return time.perf_counter() - begun


def images_a_second(seconds: float) -> float:
    """Of a side that is asked again as soon as it has answered."""
    _forward()
    begun, count = time.perf_counter(), 0
    while time.perf_counter() < begun + seconds:
        count += int(_forward())
    return count / (time.perf_counter() - begun)


class Server:
    """`scripts/serve` over a base folder."""

    def __init__(self, base: Path, precision: str = "float32") -> None:
        self.port = demo.free_port()
        self.log = base / f"serve-{self.port}.log"
        settings = {"SAGEMAKER_BASE_DIR": str(base), "SAGEMAKER_BIND_TO_PORT": str(self.port)}
        self.begun = time.monotonic()
        with self.log.open("w") as log:
            environment = os.environ | settings | {"SSD_ALGO_PRECISION": precision}
            self.process = subprocess.Popen(SERVE, env=environment, stdout=log, stderr=log)

    def worker(self) -> int:
        """The process id of the one that answers; it is the master's only child, 0 when there is none."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def resident(self) -> float:
        """MB of it."""
        return int(Path(f"/proc/{self.worker()}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def wait_until_ready(self) -> float:
        """Seconds from its start."""
        while not demo.is_ready(f"http://127.0.0.1:{self.port}"):
            if self.process.poll() is not None or time.monotonic() > self.begun + 120:
                sys.exit(f"The server does not come up:\n{self.log.read_text()}")
            time.sleep(0.02)
        return time.monotonic() - self.begun

    def engine_seconds(self) -> float:
        """Of all batches so far."""
        connection = connect(self.port)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return float(re.findall(r'ssd_algo_stage_seconds_sum{stage="engine"} (\S+)', text)[0])


@contextmanager
def serving(base: Path, precision: str = "float32") -> Iterator[Server]:
    """A server that is ready; it is made to end."""
    server = Server(base, precision)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.process.terminate()
        try:
            server.process.wait(40)
        except subprocess.TimeoutExpired:
            server.process.kill()


class OneClient:
    """One request at a time over one connection."""

    def __init__(self, server: Server) -> None:
        self._server, self._connection, self._photo = server, connect(server.port), photo()

    def seconds_of_one(self) -> float:
        begun = time.perf_counter()
        post(self._connection, self._photo)
        response = self._connection.getresponse()
        response.read()
        taken = time.perf_counter() - begun
        assert response.status == 200, response.status
        return taken

    def seconds_and_those_of_the_engine(self) -> tuple[float, float]:
        before = self._server.engine_seconds()
        taken = self.seconds_of_one()
        return taken, self._server.engine_seconds() - before
