"""What stands out in the metrics of a detector, in sentences: each is there only where it holds."""

from collections.abc import Iterator
from typing import Any

from ssd_algo.data.findings import printable

Remark = dict[str, Any]

_NAMED = 3  # classes in a sentence

_FEW_OBJECTS = 30  # of a class in validation, of which a score says little
_FEW_STEPS = 500  # of a training
_SMALL = 32.0  # pixels of the network's input, below which an object is hard to see

_ADVICE = {
    "localisation": "the class is right, but the box does not fit",
    "confusion": "the box fits, but the class is another",
    "both": "neither box nor class fit",
    "duplicate": "the object had been found already",
    "background": "there is nothing labelled",
    "missed": "nothing near is found",
}


def remarks(metrics: dict[str, Any]) -> list[Remark]:
    """Sentences with their numbers, what matters most first.

    Parameters
    ----------
    metrics : dict
        As in metrics.json. All of its parts may be missing: `evaluation` (`analysis.describe` and `evaluate.describe`
        together), `data`, `epochs`, `best`, `time`.

    Returns
    -------
    list of dict
        `kind`, the same for all remarks of a kind; `text`; and the numbers that are in the text.
    """
    evaluation, data = metrics.get("evaluation"), metrics.get("data") or {}
    found: list[Remark] = []
    if evaluation and evaluation["objects"]:
        found += _few_steps(evaluation, metrics)
        found += _labels(evaluation)
        found += _in_both_channels(data)
        found += _weak_classes(evaluation, data)
        found += _loose_boxes(evaluation)
        found += _confusions(evaluation)
        found += _kind_of_errors(evaluation)
        found += _thresholds(evaluation)
        found += _few_objects(evaluation)
    else:
        found += _in_both_channels(data)
    found += _sizes(data)
    found += _course(metrics.get("epochs") or [], metrics.get("best"))
    found += _waiting(metrics.get("time") or {})
    return [each | {"text": printable(each["text"])} for each in found]


def _few_steps(evaluation: dict[str, Any], metrics: dict[str, Any]) -> Iterator[Remark]:
    epochs = metrics.get("epochs") or []
    steps = sum(each["batches"] for each in epochs)
    if epochs and steps < _FEW_STEPS and evaluation["mAP"] < 0.3:
        text = f"The training was short: {steps:,} steps in {len(epochs):,} epoch{'s' if len(epochs) > 1 else ''}. "
        text += "Before anything else try more epochs or a smaller mini_batch_size."
        if (metrics.get("hyperparameters") or {}).get("use_pretrained_model") == "0":
            text += (
                " From random weights it takes some hundreds of steps until classes are told apart; ImageNet weights "
                "(use_pretrained_model) or a channel model are a nearer start."
            )
        yield {
            "kind": "short training",
            "text": text,
            "steps": steps,
            "epochs": len(epochs),
        }


def _labels(evaluation: dict[str, Any]) -> Iterator[Remark]:
    doubt, confident = evaluation["in_doubt"], evaluation["confident"]
    background = evaluation["errors"]["background"]
    # Where most of what is found is right, images where most is not are suspicious.
    if doubt["images"] >= 2 and evaluation["precision"] >= 0.5:
        yield {
            "kind": "missing labels",
            "text": (
                f"Labels may be missing: in {doubt['images']:,} of {evaluation['images']:,} validation images more is "
                f"found where nothing is labelled than there are labels. They have {doubt['background']:,} of the "
                f"{background:,} detections ({_percent(doubt['background'], background)}) that count as false because "
                "nothing is labelled there. Look at them first, under “labels in doubt”: where labels are missing, "
                "what is found counts as an error, and in training the network is taught not to find it."
            ),
            "images": doubt["images"],
            "of_images": evaluation["images"],
            "detections": doubt["background"],
            "of_detections": background,
        }
    if confident["on_nothing"] >= 5 and 2 * confident["on_nothing"] >= confident["false"]:
        yield {
            "kind": "sure of what is not labelled",
            "text": (
                f"Of {confident['false']:,} false detections with a score of at least {confident['score']:.2f}, "
                f"{confident['on_nothing']:,} lie where nothing is labelled, in {confident['images']:,} images. When a "
                "network is so sure, it is often the label that is missing."
            ),
            **confident,
        }


def _in_both_channels(data: dict[str, Any]) -> Iterator[Remark]:
    count = data.get("images_in_both_channels", 0)
    if count:
        of = data["validation"]["images"]
        yield {
            "kind": "images in both channels",
            "text": (
                f"{count:,} of {of:,} validation images are most likely training images too: the scores promise more "
                "than new images will keep."
            ),
            "images": count,
            "of_images": of,
        }


def _weak_classes(evaluation: dict[str, Any], data: dict[str, Any]) -> Iterator[Remark]:
    present = {identity: each for identity, each in evaluation["classes"].items() if each["objects"]}
    in_training = (data.get("train") or {}).get("classes") or {}
    objects = sum(each["objects"] for each in in_training.values())
    for identity, each in sorted(present.items(), key=lambda item: item[1]["AP"])[:_NAMED]:
        if each["AP"] > evaluation["mAP"] - 0.1:
            return
        text = (
            f"{each['name']} is found badly: its average precision is {each['AP']:.2f}, the mean of all classes "
            f"{evaluation['mAP']:.2f}."
        )
        remark: Remark = {"kind": "weak class", "class": identity, "AP": each["AP"], "mAP": evaluation["mAP"]}
        trained = in_training.get(identity)
        if trained:
            share = trained["objects"] / objects
            text += f" It has {trained['objects']:,} of the {objects:,} training objects"
            text += f" ({_percent(trained['objects'], objects)})."
            remark |= {"train_objects": trained["objects"], "of_objects": objects}
            if share < 0.5 / len(in_training):
                text += " More images with it would help."
            others = [other["side"] for other in in_training.values() if other.get("side")]
            if trained.get("side") and trained["side"] == min(others) and trained["side"] < _SMALL:
                text += (
                    f" Its boxes are the smallest: {trained['side']:.0f} pixels wide and high at the median as the "
                    "network sees them. A larger image_shape would show more of them."
                )
                remark["side"] = trained["side"]
        yield remark | {"text": text}


def _loose_boxes(evaluation: dict[str, Any]) -> Iterator[Remark]:
    if evaluation["iou_threshold"] > 0.6:
        return
    loose = [
        (identity, each)
        for identity, each in evaluation["classes"].items()
        if each["objects"] and each["AP"] >= 0.5 and each["AP_75"] < each["AP"] / 2 and each["median_iou"] is not None
    ]
    loose = sorted(loose, key=lambda item: item[1]["AP_75"] - item[1]["AP"])[:_NAMED]
    if not loose:
        return
    each_class = "; ".join(
        f"{each['name']} has an average precision of {each['AP']:.2f} at an IoU above "
        f"{evaluation['iou_threshold']:.2f}, but {each['AP_75']:.2f} above 0.75 (its right boxes share "
        f"{each['median_iou']:.2f} with the labels at the median)"
        for _, each in loose
    )
    yield {
        "kind": "loose boxes",
        "text": (
            f"Objects are found, but their boxes are loose: {each_class}. Either labels are drawn inconsistently, or "
            "training was too short or at too small an image_shape to place boxes better."
        ),
        "iou_threshold": evaluation["iou_threshold"],
        "classes": {identity: {name: each[name] for name in ("AP", "AP_75", "median_iou")} for identity, each in loose},
    }


def _confusions(evaluation: dict[str, Any]) -> Iterator[Remark]:
    classes = evaluation["classes"]
    for row in evaluation["confusion"]:
        truth, found, count = str(row["truth"]), str(row["found"]), row["count"]
        if row["truth"] is None or row["found"] is None or truth == found:
            continue
        objects = classes[truth]["objects"]
        if count >= 5 and count >= 0.05 * objects:
            yield {
                "kind": "confused classes",
                "text": (
                    f"{count:,} of {objects:,} objects of class {classes[truth]['name']} "
                    f"({_percent(count, objects)}) are taken for {classes[found]['name']}."
                ),
                "class": truth,
                "found": found,
                "objects": count,
                "of_objects": objects,
            }


def _kind_of_errors(evaluation: dict[str, Any]) -> Iterator[Remark]:
    errors = {kind: count for kind, count in evaluation["errors"].items() if kind != "right"}
    total, kind = sum(errors.values()), max(errors, key=lambda each: errors[each])
    if errors[kind] >= 10 and errors[kind] >= 0.4 * total:
        yield {
            "kind": "commonest error",
            "text": (
                f"At a score of at least {evaluation['threshold']:.2f} the commonest error is {kind}: "
                f"{errors[kind]:,} of {total:,} ({_percent(errors[kind], total)}), where {_ADVICE[kind]}."
            ),
            "threshold": evaluation["threshold"],
            "error": kind,
            "count": errors[kind],
            "of": total,
        }


def _thresholds(evaluation: dict[str, Any]) -> Iterator[Remark]:
    gains = {
        identity: each
        for identity, each in evaluation["classes"].items()
        if each["threshold"] is not None
        and abs(each["threshold"] - 0.5) >= 0.15
        and each["F1"] - each["F1_at_half"] >= 0.05
    }
    gains = dict(sorted(gains.items(), key=lambda item: item[1]["F1_at_half"] - item[1]["F1"])[:_NAMED])
    if not gains:
        return
    each_class = "; ".join(
        f"{each['name']} is best at {each['threshold']:.2f}, with an F1 of {each['F1']:.2f} in place of "
        f"{each['F1_at_half']:.2f}"
        for each in gains.values()
    )
    yield {
        "kind": "threshold",
        "text": f"A score of 0.5 is not where to cut: {each_class}.",
        "classes": {
            identity: {name: each[name] for name in ("threshold", "F1", "F1_at_half")}
            for identity, each in gains.items()
        },
    }


def _few_objects(evaluation: dict[str, Any]) -> Iterator[Remark]:
    few = {identity: each for identity, each in evaluation["classes"].items() if 0 < each["objects"] < _FEW_OBJECTS}
    few = dict(sorted(few.items(), key=lambda item: item[1]["objects"]))
    if few:
        named = ", ".join(f"{each['name']} {each['objects']}" for each in list(few.values())[:_NAMED])
        least = next(iter(few.values()))["objects"]
        more = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
        yield {
            "kind": "few objects",
            "text": (
                f"Validation has few objects of some classes: {named}{more}. One object found or not moves the recall "
                f"by up to {1 / least:.2f}, so smaller differences in their average precision mean nothing."
            ),
            "classes": {identity: each["objects"] for identity, each in few.items()},
            "recall_of_one": 1 / least,
        }


def _sizes(data: dict[str, Any]) -> Iterator[Remark]:
    train, validation = ((data.get(name) or {}).get("side") for name in ("train", "validation"))
    if train and validation and max(train, validation) >= 1.25 * min(train, validation):
        larger, smaller = ("training", "validation") if train > validation else ("validation", "training")
        yield {
            "kind": "sizes of images",
            "text": (
                f"Training and validation images are not alike: those of {larger} are larger, "
                f"{max(train, validation):.0f} pixels in the mean of width and height, those of {smaller} "
                f"{min(train, validation):.0f} (medians)."
            ),
            "train": train,
            "validation": validation,
        }


def _course(epochs: list[dict[str, Any]], best: dict[str, Any] | None) -> Iterator[Remark]:
    scores = [(each["epoch"], each["validation"]["mAP"]) for each in epochs if "validation" in each]
    if best is None or len(scores) < 3:
        return
    epoch, score = scores[-1]
    before_epoch, before = scores[-1 - max(1, len(scores) // 5)]
    if best["epoch"] == epoch and score - before >= 0.01:
        yield {
            "kind": "rising mAP",
            "text": (
                f"The mAP was still rising at the end: {before:.3f} after epoch {before_epoch}, {score:.3f} after "
                f"epoch {epoch}. More epochs may help."
            ),
            "epochs": [before_epoch, epoch],
            "mAP": [before, score],
        }
    elif best["mAP"] - score >= 0.02:
        yield {
            "kind": "falling mAP",
            "text": (
                f"The mAP was best after epoch {best['epoch']}, {best['mAP']:.3f}, and {score:.3f} after epoch "
                f"{epoch}: the later epochs did not help on images that are not trained on."
            ),
            "epochs": [best["epoch"], epoch],
            "mAP": [best["mAP"], score],
        }


def _waiting(time: dict[str, Any]) -> Iterator[Remark]:
    waited, steps = time.get("waited_seconds", 0.0), time.get("steps_seconds", 0.0)
    if waited >= 0.1 * (waited + steps) and waited >= 1:
        yield {
            "kind": "waiting for images",
            "text": (
                f"The training steps waited for images {waited:.0f} of {waited + steps:.0f} seconds "
                f"({_percent(waited, waited + steps)}): an instance with more CPUs would train faster."
            ),
            "waited_seconds": waited,
            "of_seconds": waited + steps,
        }


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "0 %"
