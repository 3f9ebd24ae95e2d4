"""What a part of the recipe is worth: one training with that part changed.

    python benchmarks/recipe.py DATA [--change CHANGE] [--base_network resnet-18] [--epochs 6] [--seed 0] ...

DATA holds the four channels of the image format. Any hyperparameter may be given. Prints one JSON line a figure;
the changes are named below. A training of 6 epochs takes about 5 minutes on 2 cores for resnet-18, 15 for resnet-50.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figures import figure

from ssd_algo.training import job, recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--change", choices=CHANGES)
    options, rest = parser.parse_known_args()
    hyperparameters = {
        "base_network": "resnet-18",
        "image_shape": "300",
        "mini_batch_size": "16",
        "epochs": "6",
        "use_pretrained_model": "0",
        "num_classes": "3",
        "num_training_samples": str(len(list((options.data / "train_annotation").iterdir()))),
    }
    hyperparameters |= {name.removeprefix("--"): value for name, value in zip(rest[::2], rest[1::2], strict=True)}
    if options.change:
        CHANGES[options.change]()
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        (base / "input" / "config").mkdir(parents=True)
        (base / "input" / "data").symlink_to(options.data.resolve())
        (base / "input" / "config" / "hyperparameters.json").write_text(json.dumps(hyperparameters))
        os.environ["SAGEMAKER_BASE_DIR"] = str(base)
        with contextlib.redirect_stdout(sys.stderr):  # the log
            code = job.main()
        if code:
            sys.exit(code)
        epochs = json.loads((base / "output" / "data" / "metrics.json").read_text())["epochs"]
    run = f"{hyperparameters['base_network']}, {hyperparameters['epochs']} epochs, {options.change or 'as it is'}"
    for epoch in epochs:
        named = {f"epoch {epoch['epoch'] + 1} cross entropy": epoch["cross_entropy"]}
        if "validation" in epoch:
            named[f"epoch {epoch['epoch'] + 1} mAP"] = epoch["validation"]["mAP"]
            named[f"epoch {epoch['epoch'] + 1} COCO AP"] = epoch["validation"]["coco"]["mean"]
            for each in epoch["validation"]["classes"].values():
                named[f"epoch {epoch['epoch'] + 1} AP of {each['name']}"] = each["AP"]
        for name, value in named.items():
            better = "lower" if name.endswith("entropy") else "higher"
            figure(f"{run}: {name}", value, None, better)


def without(**changes: Any) -> Callable[[], None]:
    """The recipe `modern` with other values."""

    def change() -> None:
        recipe.RECIPES["modern"] = dataclasses.replace(recipe.RECIPES["modern"], **changes)

    return change


def smooth_labels() -> None:
    """Cross entropy of labels of which a tenth is spread over all classes (Szegedy et al. 2016, section 7)."""
    import mxnet as mx

    pick = mx.sym.pick

    def smoothed(data: Any, index: Any, axis: int, **keywords: Any) -> Any:
        picked = pick(data, index, axis=axis, **keywords)
        return 0.9 * picked + 0.1 * mx.sym.mean(data, axis=2) if axis == 2 else picked  # 2: classes, in the loss alone

    mx.sym.pick = smoothed


def use_layout_of_gluoncv() -> None:
    """The layout of GluonCV's `ssd_512_resnet50_v1`: maps of stride 16 and more, anchors from a tenth of the side."""
    from ssd_algo.data import anchors
    from ssd_algo.model import backbones, network

    features = backbones.features
    backbones.features = lambda *arguments: dict(list(features(*arguments).items())[1:])
    network._SMALL_EXTRAS = [(512, 3, 2, 1), (512, 3, 2, 1), (256, 3, 2, 1), (256, 3, 2, 1)]
    network._RESNET_LEAVES_OUT = 0
    anchors._SMALL_SCALES = (0.1, 0.26, 0.9)


CHANGES = {
    "no warm-up": without(warm_up=0),
    "no clipping": without(clipped_norm=None),
    "weight decay on gammas": without(decayed=("_weight", "_gamma")),
    "no average": without(average=None),
    "label smoothing": smooth_labels,
    "layout of GluonCV": use_layout_of_gluoncv,
}


if __name__ == "__main__":
    main()
