"""What stands out, as whole sentences; and that nothing is said where it does not hold."""

from typing import Any

import pytest

from ssd_algo.evaluation.remarks import remarks

ERRORS = {"right": 80, "localisation": 3, "confusion": 2, "both": 0, "duplicate": 1, "background": 4, "missed": 5}


def a_class(name: str, **values: Any) -> dict[str, Any]:
    usual = {"name": name, "objects": 50, "AP": 0.8, "AP_75": 0.6, "threshold": 0.5, "F1": 0.8, "F1_at_half": 0.8}
    return usual | {"median_iou": 0.85, "precision": 0.8, "recall": 0.8} | values


def an_evaluation(**values: Any) -> dict[str, Any]:
    usual = {
        "images": 40,
        "objects": 100,
        "iou_threshold": 0.5,
        "threshold": 0.5,
        "precision": 0.89,
        "mAP": 0.8,
        "errors": ERRORS,
        "classes": {"0": a_class("cat"), "1": a_class("dog")},
        "confusion": [{"truth": 0, "found": 0, "count": 40}, {"truth": 0, "found": 1, "count": 2}],
        "confident": {"score": 0.8, "false": 4, "on_nothing": 4, "images": 3},
        "in_doubt": {"images": 1, "background": 4},
    }
    return usual | values


def said(**metrics: Any) -> list[str]:
    return [each["text"] for each in remarks(metrics)]


def some_data(**of_dog: Any) -> dict[str, Any]:
    classes = {
        "0": {"name": "cat", "objects": 900, "images": 500, "side": 80.0},
        "1": {"name": "dog", "objects": 100, "images": 90, "side": 70.0} | of_dog,
    }
    channel = {"images": 600, "objects": 1000, "side": 400.0, "classes": classes}
    return {"train": channel, "validation": channel | {"images": 40}, "images_in_both_channels": 0, "warnings": []}


def test_nothing_stands_out() -> None:
    assert said() == []
    assert said(evaluation=an_evaluation(), data=some_data(), epochs=[], best=None, time={}) == []


def test_labels_that_may_be_missing() -> None:
    doubt = {"images": 7, "background": 30}
    errors = ERRORS | {"background": 60}
    first, _ = said(evaluation=an_evaluation(in_doubt=doubt, errors=errors))
    assert first == (
        "Labels may be missing: in 7 of 40 validation images more is found where nothing is labelled than there are "
        "labels. They have 30 of the 60 detections (50 %) that count as false because nothing is labelled there. Look at "
        "them first, under “labels in doubt”: where labels are missing, what is found counts as an error, and in training "
        "the network is taught not to find it."
    )
    # What finds little but what is not there says nothing of labels.
    assert said(evaluation=an_evaluation(in_doubt=doubt, precision=0.3)) == []


def test_confident_detections_on_nothing() -> None:
    confident = {"score": 0.8, "false": 12, "on_nothing": 9, "images": 5}
    assert said(evaluation=an_evaluation(confident=confident)) == [
        "Of 12 false detections with a score of at least 0.80, 9 lie where nothing is labelled, in 5 images. When a network "
        "is so sure, it is often the label that is missing."
    ]
    assert said(evaluation=an_evaluation(confident=confident | {"on_nothing": 5})) == []


def test_images_in_both_channels() -> None:
    assert said(data=some_data() | {"images_in_both_channels": 8}) == [
        "8 of 40 validation images are most likely training images too: the scores promise more than new images will keep."
    ]


@pytest.mark.parametrize(
    ("dog", "rest"),
    [
        ({}, " It has 100 of the 1,000 training objects (10 %). More images with it would help."),
        (
            {"side": 20.4},
            " It has 100 of the 1,000 training objects (10 %). More images with it would help. Its boxes are the smallest: "
            "20 pixels wide and high at the median as the network sees them. A larger image_shape would show more of them.",
        ),
        ({"objects": 2100}, " It has 2,100 of the 3,000 training objects (70 %)."),
    ],
)
def test_a_weak_class(dog: dict[str, Any], rest: str) -> None:
    classes = {"0": a_class("cat", AP=0.9), "1": a_class("dog", AP=0.31)}
    evaluation = an_evaluation(classes=classes, mAP=0.605)
    begins = "dog is found badly: its average precision is 0.31, the mean of all classes 0.60."
    assert said(evaluation=evaluation, data=some_data(**dog)) == [begins + rest]
    assert said(evaluation=evaluation) == [begins]


def test_loose_boxes() -> None:
    classes = {"0": a_class("cat", AP=0.9, AP_75=0.2, median_iou=0.66), "1": a_class("dog")}
    assert said(evaluation=an_evaluation(classes=classes)) == [
        "Objects are found, but their boxes are loose: cat has an average precision of 0.90 at an IoU above 0.50, but 0.20 "
        "above 0.75 (its right boxes share 0.66 with the labels at the median). Either labels are drawn inconsistently, or "
        "training was too short or at too small an image_shape to place boxes better."
    ]
    assert said(evaluation=an_evaluation(classes=classes, iou_threshold=0.7)) == []


def test_classes_that_are_confused() -> None:
    confusion = [{"truth": 1, "found": 0, "count": 9}, {"truth": None, "found": 0, "count": 30}]
    assert said(evaluation=an_evaluation(confusion=confusion)) == [
        "9 of 50 objects of class dog (18 %) are taken for cat."
    ]


def test_the_commonest_error() -> None:
    assert said(evaluation=an_evaluation(errors=ERRORS | {"localisation": 12})) == [
        "At a score of at least 0.50 the commonest error is localisation: 12 of 24 (50 %), where the class is right, but "
        "the box does not fit."
    ]


def test_a_threshold_far_from_half() -> None:
    classes = {"0": a_class("cat", threshold=0.22, F1=0.71, F1_at_half=0.4), "1": a_class("dog", threshold=0.3)}
    assert said(evaluation=an_evaluation(classes=classes)) == [
        "A score of 0.5 is not where to cut: cat is best at 0.22, with an F1 of 0.71 in place of 0.40."
    ]


def test_few_objects() -> None:
    classes = {"0": a_class("cat", objects=8), "1": a_class("dog", objects=0, AP=0.0, threshold=None)}
    assert said(evaluation=an_evaluation(classes=classes)) == [
        "Validation has few objects of some classes: cat 8. One object found or not moves the recall by up to 0.12, so "
        "smaller differences in their average precision mean nothing."
    ]


def test_images_of_other_sizes() -> None:
    data = some_data()
    data["validation"] = data["validation"] | {"side": 700.0}
    assert said(data=data) == [
        "Training and validation images are not alike: those of validation are larger, 700 pixels in the mean of width and "
        "height, those of training 400 (medians)."
    ]


def course(*scores: float) -> dict[str, Any]:
    epochs = [{"epoch": number, "validation": {"mAP": score}} for number, score in enumerate(scores)]
    best = max(range(len(scores)), key=lambda number: scores[number])
    return {"epochs": epochs, "best": {"epoch": best, "mAP": scores[best]}}


def test_the_course_of_the_map() -> None:
    assert said(**course(0.1, 0.3, 0.4, 0.5, 0.55)) == [
        "The mAP was still rising at the end: 0.500 after epoch 3, 0.550 after epoch 4. More epochs may help."
    ]
    assert said(**course(0.1, 0.6, 0.5, 0.5)) == [
        "The mAP was best after epoch 1, 0.600, and 0.500 after epoch 3: the later epochs did not help on images that are "
        "not trained on."
    ]
    assert said(**course(0.1, 0.5, 0.505, 0.504)) == []
    assert said(**course(0.1, 0.5)) == []


def test_a_short_training() -> None:
    classes = {"0": a_class("cat", AP=0.1, AP_75=0.0), "1": a_class("dog", AP=0.1, AP_75=0.0)}
    weak = an_evaluation(mAP=0.1, classes=classes)
    epochs = [{"epoch": number, "batches": 4} for number in range(12)]
    sentence = "The training was short: 48 steps in 12 epochs. Before anything else try more epochs or a smaller mini_batch_size."
    assert said(evaluation=weak, epochs=epochs, hyperparameters={"use_pretrained_model": "1"}) == [sentence]
    assert said(evaluation=weak, epochs=epochs, hyperparameters={"use_pretrained_model": "0"}) == [
        f"{sentence} From random weights it takes some hundreds of steps until classes are told apart; ImageNet weights "
        "(use_pretrained_model) or a channel model are a nearer start."
    ]
    assert said(evaluation=weak, epochs=epochs[:1])[0].startswith("The training was short: 4 steps in 1 epoch. ")
    assert said(evaluation=weak, epochs=[{"epoch": 0, "batches": 500}]) == []
    assert said(evaluation=an_evaluation(), epochs=[{"epoch": 0, "batches": 48}]) == []
    assert said(evaluation=weak) == []


def test_waiting_for_images() -> None:
    assert said(time={"waited_seconds": 30.0, "steps_seconds": 90.0}) == [
        "The training steps waited for images 30 of 120 seconds (25 %): an instance with more CPUs would train faster."
    ]
    assert said(time={"waited_seconds": 3.0, "steps_seconds": 90.0}) == []
