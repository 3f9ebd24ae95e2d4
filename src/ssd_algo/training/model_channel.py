"""What the model of channel model must be for training to start from it; known without mxnet."""

from collections.abc import Collection, Mapping
from pathlib import Path

from ssd_algo.data.findings import Findings, printable
from ssd_algo.data.labels import Rules
from ssd_algo.errors import UserError
from ssd_algo.model import artifact

_FIT = "model that does not fit"
_SHOWN = 5  # class names in a sentence


def check(channel: Path, rules: Rules, class_names: Mapping[int, str], findings: Findings) -> None:
    """See that the channel has a model, and that training can start from it; what breaks a rule is reported.

    Parameters
    ----------
    channel : Path
        Its folder.
    rules : Rules
        Without `base_network` the job is not known, and the model only has to be one.
    class_names : dict
        Of the data, class id to name.
    """
    try:
        with artifact.unpacked(channel) as directory:
            model = artifact.describe(directory)
            if model.multibox is not None:
                artifact.read(directory)
    except UserError as error:
        findings.refuse("channel of weights", "channel model", str(error))
        return
    if rules.base_network is None or rules.num_classes is None:
        return
    if model.base_network != rules.base_network:
        findings.refuse(
            _FIT,
            "channel model",
            f"it holds a model with base_network {model.base_network}, but the hyperparameter base_network is "
            f"{rules.base_network}; they must be the same.",
        )
    if model.multibox is not None and model.image_shape != rules.image_shape:
        findings.refuse(
            _FIT,
            "channel model",
            f"it holds a network of the built-in algorithm for image_shape {model.image_shape}, but the hyperparameter "
            f"image_shape is {rules.image_shape}; they must be the same.",
        )
    if model.num_classes != rules.num_classes and not rules.transfer:
        findings.refuse(
            _FIT,
            "channel model",
            f"it holds a model with num_classes {model.num_classes}, but the hyperparameter num_classes is "
            f"{rules.num_classes}; they must be the same, unless transfer is True, which matches classes by name.",
        )
    elif not findings.faults:  # else some of the data's names may not have been read
        _check_names(model, class_names, rules, findings)


def _check_names(model: artifact.Description, ours: Mapping[int, str], rules: Rules, findings: Findings) -> None:
    theirs = model.class_names
    if not rules.transfer:
        other = next((each for each in sorted(theirs.keys() & ours.keys()) if theirs[each] != ours[each]), None)
        if other is not None:
            findings.warn(
                "class names of the model",
                "channel model",
                f'its class {other} is "{theirs[other]}", but that of the data is "{ours[other]}"; with transfer True '
                "classes are matched by name.",
            )
    elif not theirs:
        findings.refuse(
            _FIT,
            "channel model",
            "transfer is True, but the model has no class names, by which classes are matched; add them to its "
            'classes.json, as {"0": "dog", "1": "cat"}, or set transfer to False.',
        )
    elif not ours:
        findings.refuse(
            _FIT,
            "channel model",
            "transfer is True, but the data has no class names, by which classes are matched; add categories to the "
            "annotations, or a .classes.txt to the .rec file, or set transfer to False.",
        )
    elif set(origins(model, ours, rules.num_classes or 0)) == {None}:
        findings.refuse(
            _FIT,
            "channel model",
            f"transfer is True, but no class of the model ({listed(theirs.values())}) has the name of one of the data "
            f"({listed(ours.values())}); give them the same names, or leave out channel model.",
        )


def origins(model: artifact.Description, class_names: Mapping[int, str], num_classes: int) -> list[int | None]:
    """Where the classes of a job come from.

    Parameters
    ----------
    model : Description
    class_names : dict
        Of the data, class id to name.
    num_classes : int
        The job's.

    Returns
    -------
    list
        For each class id of the job the model's id of the same name, each at most once; None for a new class.
    """
    left = {name: identity for identity, name in model.class_names.items() if identity < model.num_classes}
    return [left.pop(class_names[each], None) if each in class_names else None for each in range(num_classes)]


def listed(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return printable(", ".join(list(names)[:_SHOWN]) + more)
