"""What a checkpoint costs: the time that training waits for it, and the work of the thread that writes it.

    python benchmarks/checkpoint.py

Prints one JSON line a figure. The share is of an epoch of 60 s with one checkpoint, as if no core had been idle: the
wait, and the thread's processor time, which is taken from the training on all cores. The steps are those of resnet-18
at 300 pixels with 4 images.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from figures import figure

from ssd_algo.contract.container import available_cpus, set_up_mxnet
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data.loader import Batch
from ssd_algo.training import checkpoint

SIDE, BATCH, CLASSES = 300, 4, 20
NETWORKS = ("resnet-18", "resnet-50", "vgg-16", "resnet-101")
STEPS = 12


def main() -> None:
    set_up_mxnet(one_shape=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name in NETWORKS:
            trainer = make_trainer(name)
            best = {f"best/{each}": value for each, value in trainer.values().items()}  # in memory already
            begun = time.perf_counter()
            state, arrays = trainer.snapshot()
            waited = time.perf_counter() - begun
            worked = processor_seconds(Path(temporary) / "x.safetensors", checkpoint.Checkpoint(state, arrays | best))
            figure(f"{name}_checkpoint_share_of_60_s", (waited + worked / available_cpus()) / 60, 0.02, "lower")
            figure(f"{name}_seconds_waited_for_a_checkpoint", waited, None, "lower", "s")
            if name == "resnet-18":
                figure(
                    "steps_beside_writing_times_those_without", beside_writing(trainer, Path(temporary)), None, "higher"
                )


def make_trainer(base_network: str) -> Any:
    """A trainer that has made a step."""
    import mxnet as mx

    from ssd_algo.model.network import build_network, constants, initial_parameters
    from ssd_algo.training.peers import Peers
    from ssd_algo.training.trainer import Trainer

    given = {"num_classes": CLASSES, "num_training_samples": 1, "base_network": base_network, "mini_batch_size": BATCH}
    hp = Hyperparameters.parse({name: str(value) for name, value in given.items()})
    network = build_network(base_network, SIDE, CLASSES)
    values = initial_parameters(network, SIDE, np.random.default_rng(0)) | constants(network)
    trainer = Trainer(network, values, hp, [mx.cpu()], 1000, Peers.alone())
    trainer.train_epoch(0, [batch()])
    return trainer


def batch() -> Batch:
    """Noise with one box an image."""
    generator = np.random.default_rng(0)
    return Batch(
        images=generator.integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8),
        boxes=np.tile(np.asarray([0.2, 0.2, 0.6, 0.6], dtype=np.float32), (BATCH, 1, 1)),
        classes=np.zeros((BATCH, 1), dtype=np.float32),
        weights=np.ones(BATCH, dtype=np.float32),
    )


def processor_seconds(path: Path, made: checkpoint.Checkpoint) -> float:
    begun = time.thread_time()
    checkpoint.save(path, made)
    return time.thread_time() - begun


def beside_writing(trainer: Any, folder: Path) -> float:
    """Steps a second while one checkpoint after the other is written, over those without; the better of two rounds."""
    state, arrays = trainer.snapshot()
    made = checkpoint.Checkpoint(state, arrays)
    ratios = []
    for _ in range(2):
        without = seconds(trainer, lambda: None)
        with checkpoint.Checkpoints(folder, 10) as checkpoints:
            beside = seconds(trainer, lambda: checkpoints.keep(made))
        ratios.append(without / beside)
    return max(ratios)


def seconds(trainer: Any, before_some: Any) -> float:
    """Seconds of an epoch, with something done before every fourth step."""

    def batches() -> Any:
        for number in range(STEPS):
            if number % 4 == 0:
                before_some()
            yield batch()

    begun = time.perf_counter()
    trainer.train_epoch(1, batches())
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
