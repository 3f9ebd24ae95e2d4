"""The report of a training: report.html, and what it shows in metrics.json."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_algo.contract.container import Container, available_cpus, set_up_matplotlib, set_up_mxnet
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data.check import summary
from ssd_algo.data.progress import Progress
from ssd_algo.errors import UserError
from ssd_algo.training import data
from ssd_algo.training.stopping import Stop

if TYPE_CHECKING:  # these start mxnet
    from ssd_algo.evaluation.report import Evaluated
    from ssd_algo.training.loop import Job
    from ssd_algo.training.validation import Validation

logger = logging.getLogger(__name__)

# How long it may take, of which a job that is to stop must have enough left.
_SECONDS, _SECONDS_AN_IMAGE = 10.0, 0.004


def leave(job: "Job", validation: "Validation", stop: Stop, seconds: dict[str, float]) -> None:
    """Make the report of a training that ends; a failure is told, and costs nothing else.

    Parameters
    ----------
    seconds : dict
        What else took time than the epochs, for metrics.json.
    """
    try:
        compared, samples = validation.kept()
        if stop.seconds_left() < _SECONDS + _SECONDS_AN_IMAGE * len(compared):
            logger.warning("The job is to stop: there is no time for the report.")
            return
        from ssd_algo.evaluation import report

        metrics, of = validation.metrics(), None
        if compared:
            (best,) = (each for each in metrics["epochs"] if each["epoch"] == metrics["best"]["epoch"])
            threshold = job.hyperparameters.overlap_threshold
            of = report.evaluated(best["validation"], compared, samples, job.data.class_names, threshold)
        time = {"time": _times(metrics["epochs"]) | seconds}
        validation.add_to_metrics(_additions(metrics | time, job.configuration, job.checked, of) | time)
        with set_up_matplotlib():
            path = job.write_report(report.render(validation.metrics(), of))
    except Exception as error:  # the job has its model
        logger.warning("The report cannot be made (%s); the model itself is whole.", error)
    else:
        logger.info("The report of the training is in %s", path)


def make(container: Container, progress: Progress) -> Path:
    """Make the report of a training that has ended, from what it left: its model, data and metrics.json.

    The validation images are detected in and scored again.

    Raises
    ------
    UserError
        When one of them is missing or wrong.
    """
    path = container.output_directory / "data" / "metrics.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; give the folder of a training, which has input, model and output in it.")
    set_up_mxnet(one_shape=True)
    from ssd_algo.evaluation import report
    from ssd_algo.evaluation.evaluate import describe, detected, score
    from ssd_algo.inference import predictor
    from ssd_algo.model import artifact

    metrics = json.loads(path.read_text(encoding="utf-8"))
    model = artifact.describe(container.model_directory)
    hp = Hyperparameters.parse(model.hyperparameters)
    training_data, findings, checked = data.check(container.channels(), data.rules(hp), hp.image_shape, progress)
    findings.raise_faults()
    pairs = detected(
        training_data.validation.samples,
        hp.image_shape,
        lambda: predictor.load(container.model_directory),
        available_cpus(),
        hp.max_bad_records,
        progress,
    )
    compared = [each for _, each in pairs]
    names = model.class_names or training_data.class_names
    of = report.evaluated(
        describe(score(compared, hp.overlap_threshold), names),
        compared,
        [sample for sample, _ in pairs],
        names,
        hp.overlap_threshold,
    )
    metrics |= _additions(metrics, model.hyperparameters, checked, of)
    container.write_output("metrics.json", metrics)
    with set_up_matplotlib():
        return container.write_text("report.html", report.render(metrics, of))


def _additions(
    metrics: Mapping[str, Any], configuration: dict[str, str], checked: dict[str, Any], of: "Evaluated | None"
) -> dict[str, Any]:
    """What the report shows beside what the metrics have."""
    from ssd_algo.evaluation.remarks import remarks

    additions: dict[str, Any] = {"hyperparameters": configuration, "data": summary(checked)}
    if of is not None:
        additions["evaluation"] = of.described
    return additions | {"remarks": remarks({**metrics, **additions})}


def _times(epochs: list[dict[str, Any]]) -> dict[str, float]:
    """Where the time of the epochs went, and images a second."""
    seconds, waited = (sum(each.get(name, 0.0) for each in epochs) for name in ("seconds", "waited_seconds"))
    return {
        "steps_seconds": seconds - waited,
        "waited_seconds": waited,
        "validation_seconds": sum(each["validation_seconds"] for each in epochs),
        "images_a_second": sum(each["examples"] for each in epochs) / seconds if seconds else 0.0,
    }
