"""Accuracy of a whole training on real photos, and whether serving and the saved symbol repeat it.

    python benchmarks/accuracy.py DATA [--seed SEED] [--trained BASE]

DATA holds the four channels of the image format. BASE is the base folder of an ended training, to measure it
again. Prints one JSON line a figure. On 2 cores the training takes about 25 minutes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import mxnet as mx
import numpy as np
from figures import figure

from ssd_algo import demo
from ssd_algo.data import images
from ssd_algo.data.annotations import read_image_channel
from ssd_algo.data.files import list_folder
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Rules
from ssd_algo.evaluation.average_precision import mean_average_precision, voc
from ssd_algo.evaluation.matching import Scored, Truth

SCRIPTS = Path(__file__).parents[1] / "scripts"
HYPERPARAMETERS = {
    "base_network": "resnet-18",
    "image_shape": "300",
    "mini_batch_size": "16",
    "epochs": "40",
    "use_pretrained_model": "0",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trained", type=Path)
    options = parser.parse_args()
    base = options.trained or train(options.data, options.classes, options.seed)
    logged = float(re.findall(r"best validation mAP (\S+)", (base / "train.log").read_text())[-1])
    figure("validation_map", logged, 0.66, "higher")
    metrics = json.loads((base / "output" / "data" / "metrics.json").read_text())
    (best,) = (each["validation"] for each in metrics["epochs"] if each["epoch"] == metrics["best"]["epoch"])
    figure("coco_ap", best["coco"]["mean"], None, "higher")
    figure("lowest_class_ap", min(each["AP"] for each in best["classes"].values()), 0.35, "higher")

    folders = [list_folder(name, options.data / name) for name in ("validation", "validation_annotation")]
    validation = read_image_channel(folders[0], folders[1], Rules(options.classes), Findings())
    symbol, arguments, auxiliaries = mx.model.load_checkpoint(str(base / "model" / "model_algo_1"), 0)
    side = int(json.loads((base / "model" / "hyperparams.json").read_text())["image_shape"])
    executor = symbol.simple_bind(mx.cpu(), grad_req="null", data=(1, 3, side, side))
    executor.copy_params_from(arguments, auxiliaries)
    environment = os.environ | {"SAGEMAKER_BASE_DIR": str(base)}
    truths, found, differences = [], [], []
    with demo.serving([sys.executable, str(SCRIPTS / "serve")], environment, base / "serve.log") as url:
        for sample in validation.samples:
            encoded = sample.encoded()
            rows = np.asarray(demo.post_image(url, encoded)["prediction"], dtype=np.float32).reshape(-1, 6)
            square = images.to_square(images.decode(encoded), side)
            data = mx.nd.array(square.transpose(2, 0, 1)[None], dtype="float32")
            table = executor.forward(is_train=False, data=data)[0].asnumpy()[0]
            count = int((table[:, 0] >= 0).sum())
            differences.append(np.abs(table[:count] - rows).max(initial=0) if count == len(rows) else np.inf)
            truths.append(Truth(sample.boxes, sample.classes, sample.difficult))
            found.append(Scored(rows[:, 2:], rows[:, 1], rows[:, 0].astype(np.int64)))
    served = mean_average_precision(voc(truths, found, 0.5))
    figure("served_map_minus_logged", abs(served - logged), 0.0005, "lower")
    figure("symbol_minus_served", float(max(differences)), 1e-4, "lower")


def train(data: Path, classes: int, seed: int) -> Path:
    """Train on the data; returns the base folder."""
    base = Path(tempfile.mkdtemp(prefix="ssd-algo-accuracy-"))
    (base / "input" / "config").mkdir(parents=True)
    (base / "input" / "data").symlink_to(data.resolve())
    count = len(list((data / "train_annotation").iterdir()))
    given = {"num_classes": str(classes), "num_training_samples": str(count), "seed": str(seed)}
    hyperparameters = HYPERPARAMETERS | given
    (base / "input" / "config" / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    with (base / "train.log").open("w") as log:
        environment = os.environ | {"SAGEMAKER_BASE_DIR": str(base)}
        subprocess.run([sys.executable, str(SCRIPTS / "train")], env=environment, stdout=log, check=True)
    return base


if __name__ == "__main__":
    main()
