"""The training step beside GluonCV's own loop: the same network, batch and machine, one run.

    python benchmarks/training_step.py [FOLDER]

FOLDER holds JPEGs; without it 100 of 640 x 427 are made, as COCO's are. resnet-18 at 300, 16 images a step. Prints one
JSON line a figure. Each side runs in a process of its own with all cores, and the sides take turns. GluonCV's side has
its transform with targets in two workers, its SSDMultiBoxLoss and Gluon's Trainer, over our network.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from figures import figure
from input_pipeline import BATCH, CLASSES, SIDE, make_photos, read

from ssd_algo.contract.container import set_up_mxnet
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data.loader import Batch, Loader
from ssd_algo.data.samples import Sample

ROUNDS = 3
STEPS = 6  # that a side is measured for
WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        set_up_mxnet(one_shape=True)
        warnings.simplefilter("ignore")
        print(json.dumps(SIDES[options.side](read(options.folder))))
        return
    seen: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or make_photos(Path(temporary) / "coco", 100, 640, 427, 175_000)
        for _ in range(ROUNDS):
            for side in SIDES:
                for name, seconds in in_process(side, folder).items():
                    seen.setdefault(name, []).append(seconds)
    print(json.dumps({name: [round(each, 4) for each in times] for name, times in seen.items()}), file=sys.stderr)
    middle = {name: float(np.median(times)) for name, times in seen.items()}
    figure("end_to_end_times_gluoncv", middle["gluoncv, end to end"] / middle["ours, end to end"], 1.05)
    figure("targets_loss_optimizer_times_gluoncv", middle["gluoncv, rest"] / middle["ours, rest"], 2)
    figure("targets_loss_optimizer_share_of_step", middle["ours, rest"] / middle["ours, step"], 0.08, "lower")
    figure("network_share_of_step", middle["ours, network"] / middle["ours, step"], None)
    figure("waiting_share_of_end_to_end", 1 - middle["ours, step"] / middle["ours, end to end"], None, "lower")


def in_process(side: str, folder: Path) -> dict[str, float]:
    """What a side prints: seconds a step by name."""
    command = [sys.executable, __file__, str(folder), "--side", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def seconds_a_run(run: Callable[[], object], wait: Callable[[], object]) -> float:
    for _ in range(WARM_UP):
        run()
    wait()
    begun = time.perf_counter()
    for _ in range(STEPS):
        run()
    wait()
    return (time.perf_counter() - begun) / STEPS


def hyperparameters() -> Hyperparameters:
    given = {
        "num_classes": CLASSES,
        "num_training_samples": 1,
        "base_network": "resnet-18",
        "image_shape": SIDE,
        "mini_batch_size": BATCH,
    }
    return Hyperparameters.parse({name: str(value) for name, value in given.items()})


def ours(samples: list[Sample]) -> dict[str, float]:
    """Our loop with the loader, our step on one batch, its network alone and all else alone."""
    hp = hyperparameters()
    with Loader(samples, SIDE, BATCH, len(os.sched_getaffinity(0)), seed=0) as loader:
        import mxnet as mx

        from ssd_algo.model.network import build_network, constants, initial_parameters
        from ssd_algo.training.peers import Peers
        from ssd_algo.training.trainer import Trainer

        network = build_network(hp.base_network, SIDE, CLASSES)
        values = initial_parameters(network, SIDE, np.random.default_rng(0)) | constants(network)
        trainer = Trainer(network, values, hp, [mx.cpu()], 1000, Peers.alone())
        epochs = (batch for epoch in range(1000) for batch in loader.epoch(epoch))
        batch: list[Batch] = []

        def one() -> None:
            batch[:] = [next(epochs)]
            trainer._step(batch[0])

        end_to_end = seconds_a_run(one, mx.nd.waitall)
        kept = Batch(*(np.copy(each) for each in vars(batch[0]).values()))
        step = seconds_a_run(lambda: trainer._step(kept), mx.nd.waitall)
        rest = seconds_a_run(our_rest(trainer, network, kept), mx.nd.waitall)
        net = seconds_a_run(network_alone(network, values, kept), mx.nd.waitall)
        return {"ours, end to end": end_to_end, "ours, step": step, "ours, rest": rest, "ours, network": net}


def our_rest(trainer: Any, network: Any, batch: Batch) -> Callable[[], None]:
    """Targets, loss with its gradient, and the update, on fixed outputs of the network."""
    import mxnet as mx
    from mxnet import autograd

    from ssd_algo.model import targets

    names = ["logits", "offsets", "boxes", "classes"]
    inputs = [mx.sym.var(name) for name in names]
    anchors = mx.sym.var("anchors", shape=(1, *network.anchors.shape))
    loss = targets.detection_loss(mx.sym, inputs[0], inputs[1], anchors, inputs[2], inputs[3])
    block = mx.gluon.SymbolBlock(mx.sym.Group(loss), inputs)
    block.collect_params().initialize(mx.init.Constant(mx.nd.array(network.anchors[None])))
    block.collect_params().setattr("grad_req", "null")
    block.hybridize(static_alloc=True, static_shape=True)
    outputs = fixed_outputs(network)

    def run() -> None:
        truths = [mx.nd.array(batch.boxes), mx.nd.array(batch.classes)]
        with autograd.record():
            loss, _ = block(*outputs, *truths)
        loss.backward()
        pretend_fresh(trainer._trained)
        trainer._update(BATCH)

    return run


def pretend_fresh(parameters: Iterable[Any]) -> None:
    """Let Gluon's Trainer take the gradients for new ones."""
    for parameter in parameters:
        for each in parameter.list_data():
            each._fresh_grad = True


def fixed_outputs(network: Any) -> list[Any]:
    import mxnet as mx

    generator = np.random.default_rng(0)
    anchors = len(network.anchors)
    outputs = [mx.nd.array(generator.normal(0, 1, (BATCH, anchors, each))) for each in (CLASSES + 1, 4)]
    for each in outputs:
        each.attach_grad()
    return outputs


def network_alone(network: Any, values: dict[str, Any], batch: Batch) -> Callable[[], None]:
    """Forward and backward of the network for gradients that are there already."""
    import mxnet as mx
    from mxnet import autograd

    from ssd_algo.model.network import CONSTANTS, set_parameters, to_input

    images = mx.sym.var("images", dtype="uint8")
    block = mx.gluon.SymbolBlock(network.symbol(data=to_input(images)), [images])
    for name, parameter in block.collect_params().items():
        if name in CONSTANTS:
            parameter.grad_req = "null"
    set_parameters(block, values, [mx.cpu()])
    block.hybridize(static_alloc=True, static_shape=True)
    gradients = fixed_outputs(network)

    def run() -> None:
        with autograd.record():
            outputs = block(mx.nd.array(batch.images, dtype="uint8"))
        autograd.backward(outputs, gradients)

    return run


def gluoncv(samples: list[Sample]) -> dict[str, float]:
    """GluonCV's loop, and its targets, loss and optimizer alone."""
    import mxnet as mx
    from gluoncv.data.batchify import Stack, Tuple
    from gluoncv.data.transforms.presets.ssd import SSDDefaultTrainTransform
    from gluoncv.loss import SSDMultiBoxLoss
    from gluoncv.model_zoo.ssd.target import SSDTargetGenerator
    from mxnet import autograd, gluon

    from ssd_algo.model.network import CONSTANTS, build_network, constants, initial_parameters, set_parameters

    network = build_network("resnet-18", SIDE, CLASSES)
    net = gluon.SymbolBlock(network.symbol, [mx.sym.var("data")])
    for name, parameter in net.collect_params().items():
        if name in CONSTANTS:
            parameter.grad_req = "null"
    values = initial_parameters(network, SIDE, np.random.default_rng(0)) | constants(network)
    set_parameters(net, values, [mx.cpu()])
    net.hybridize(static_alloc=True, static_shape=True)
    settings = {"learning_rate": 0.001, "wd": 0.0005, "momentum": 0.9}
    trainer = gluon.Trainer(net.collect_params(), "sgd", settings)
    trained = [parameter for parameter in net.collect_params().values() if parameter.grad_req != "null"]
    criterion = SSDMultiBoxLoss()
    corners = network.anchors * SIDE
    centres = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    anchors = mx.nd.array(centres[None])

    class Photos(gluon.data.Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            sample = samples[index]
            image = mx.image.imdecode(sample.encoded())
            scale = np.asarray([image.shape[1], image.shape[0]] * 2)
            return image, np.concatenate([sample.boxes * scale, sample.classes[:, None]], axis=1).astype(np.float32)

    loader = gluon.data.DataLoader(
        Photos().transform(SSDDefaultTrainTransform(SIDE, SIDE, anchors)),
        BATCH,
        shuffle=True,
        batchify_fn=Tuple(Stack(), Stack(), Stack()),
        last_batch="rollover",
        num_workers=2,
    )
    batches = (batch for _ in range(1000) for batch in loader)

    def one() -> None:
        images, class_targets, box_targets = (each.as_in_context(mx.cpu()) for each in next(batches))
        with autograd.record():
            logits, offsets = net(images)
            total, _, _ = criterion([logits], [offsets], [class_targets], [box_targets])
            autograd.backward(total)
        trainer.step(1)

    end_to_end = seconds_a_run(one, mx.nd.waitall)
    generator = SSDTargetGenerator(iou_thresh=0.5, stds=(0.1, 0.1, 0.2, 0.2), negative_mining_ratio=-1)
    outputs = fixed_outputs(network)
    boxes = [mx.nd.array(sample.boxes[None] * SIDE) for sample in samples[:BATCH]]
    identities = [mx.nd.array(sample.classes[None, :, None]) for sample in samples[:BATCH]]

    def rest() -> None:
        made = [generator(anchors, None, *each) for each in zip(boxes, identities, strict=True)]
        class_targets, box_targets = (mx.nd.concat(*(each[index] for each in made), dim=0) for index in (0, 1))
        with autograd.record():
            total, _, _ = criterion([outputs[0]], [outputs[1]], [class_targets], [box_targets])
            autograd.backward(total)
        pretend_fresh(trained)
        trainer.step(1)

    return {"gluoncv, end to end": end_to_end, "gluoncv, rest": seconds_a_run(rest, mx.nd.waitall)}


SIDES = {"ours": ours, "gluoncv": gluoncv}


if __name__ == "__main__":
    main()
