"""Validation after an epoch: the forward pass at once, scoring while the next epoch trains."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from ssd_algo.contract import log_lines
from ssd_algo.contract.container import available_cpus
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data.labels import Dataset
from ssd_algo.data.loader import Batch, Loader
from ssd_algo.data.samples import Sample
from ssd_algo.evaluation.evaluate import DEFINITION, Compared, Score, compare, describe, detect, score
from ssd_algo.evaluation.matching import Scored, Truth
from ssd_algo.inference.predictor import Detections, Predictor
from ssd_algo.training.peers import Peers
from ssd_algo.training.stopping import Stop
from ssd_algo.training.trainer import EpochResult, Trainer, below, diverged

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """Weights that may become the model: their values, and what they detect in each validation image."""

    values: dict[str, NDArray[np.float32]]
    detections: list[Future[Detections] | None]


# An image's number, where it is one of this host's, what is in it and what is detected.
Kept = tuple[int | None, Compared]


class Validation:
    """Scores the network after an epoch and keeps the best model.

    Several hosts have a share of the images each; the chief, alone, scores what all detected, and keeps the model.

    Parameters
    ----------
    dataset : Dataset
    loader : Loader
        Of the data set, or this host's share of it, in its order, not augmented.
    predictors : dict
        For each kind of weights that the trainer has.
    save : callable
        Makes values the model; returns the path of the parameters.
    write_metrics : callable
        Takes the whole of metrics.json.
    stop : Stop
    peers : Peers
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        class_names: dict[int, str],
        dataset: Dataset,
        loader: Loader,
        predictors: dict[str, Predictor],
        save: Callable[[dict[str, NDArray[np.float32]]], Path],
        write_metrics: Callable[[dict[str, Any]], Path],
        stop: Stop,
        peers: Peers,
    ) -> None:
        self._hyperparameters, self._names = hyperparameters, class_names
        self._dataset, self._loader, self._predictors = dataset, loader, predictors
        self._save, self._write_metrics, self._stop, self._peers = save, write_metrics, stop, peers
        self._threads = ThreadPoolExecutor(available_cpus(), thread_name_prefix="detections")
        # One thread, so that epochs are closed one after the other and nothing below needs a lock.
        self._scoring = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._closed: Future[None] | None = None
        self._scores: list[float] = []
        self._epochs: list[dict[str, Any]] = []
        self._best: dict[str, Any] | None = None
        self._best_values: dict[str, NDArray[np.float32]] = {}
        self._more: dict[str, Any] = {}
        self._kept: list[Kept] = []  # what the best model detects
        self._since, self._waited = time.time(), 0.0  # the last validation's end, and waiting for its score

    def __enter__(self) -> "Validation":
        return self

    def __exit__(self, *_: object) -> None:
        self._scoring.shutdown()
        self._threads.shutdown()

    def close_epoch(self, epoch: int, result: EpochResult, trainer: Trainer, validated: bool, waited: float) -> None:
        """Validate if it is the epoch's turn, and record it; returns after the forward pass.

        Parameters
        ----------
        waited : float
            Seconds of the epoch in which steps waited for images.

        Raises
        ------
        UserError
            When a parameter is not finite, or the last epoch's model could not be saved.
        Stopped
            When the job is to stop before the validation has ended; then the epoch is not recorded.
        """
        started = time.time()
        self.finish()
        candidates = {}
        if validated:
            for kind, predictor in self._predictors.items():
                values = finite(trainer.values(kind), epoch, trainer.learning_rate)
                candidates[kind] = Candidate(values, detect(predictor, self._batches(), self._threads))
            now = time.time()
            share = (now - started + self._waited) / (now - self._since)
            logger.info(log_lines.validated(share, self._hyperparameters.validate_every))
            self._since, self._waited = now, 0.0
        entry = asdict(result) | {
            "epoch": epoch,
            "learning_rate": trainer.learning_rate,
            "waited_seconds": waited,
            "validation_seconds": time.time() - started,
        }
        self._closed = self._scoring.submit(self._close, epoch, entry, candidates)

    def _batches(self) -> Iterator[Batch]:
        for batch in self._loader.epoch(0):
            if self._peers.size == 1:  # several stop together, between two steps
                self._stop.check()
            yield batch

    def finish(self) -> list[float]:
        """Wait for the scores; returns the mAP of each validation so far, of its better weights."""
        if self._closed is not None:
            self._closed.result()
        return self._scores

    def wait(self) -> list[float]:
        """The same for who cannot go on without the scores: the waiting counts as validation."""
        started = time.time()
        scores = self.finish()
        self._waited += time.time() - started
        return scores

    def best(self) -> tuple[float, int] | None:
        """Highest mAP, and the first epoch that had it; None before the first score."""
        return None if self._best is None else (self._best["mAP"], self._best["epoch"])

    def snapshot(self) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
        """What was found so far, every score waited for: for JSON, and the best model's values as `best/NAME`."""
        self.finish()
        state = {"scores": list(self._scores), "epochs": list(self._epochs), "best": self._best}
        return state, {f"best/{name}": value for name, value in self._best_values.items()}

    def restore(self, state: dict[str, Any], arrays: dict[str, NDArray[np.float32]]) -> None:
        """Go on from a snapshot; its best model is saved at once, as the folder for models may be a new one.

        The chief alone does.
        """
        if not self._peers.is_chief:
            return
        self._scores, self._epochs, self._best = state["scores"], state["epochs"], state["best"]
        self._tell()
        best = below("best", arrays)
        if best:
            self._best_values = best
            logger.info(log_lines.saved(str(self._save(best))))

    def _close(self, epoch: int, entry: dict[str, Any], candidates: dict[str, Candidate]) -> None:
        try:
            self._score(epoch, entry, candidates)
        except Exception as error:
            if self._peers.size > 1:
                self._peers.fail(error)  # others wait for what this thread was to do
            raise

    def _score(self, epoch: int, entry: dict[str, Any], candidates: dict[str, Candidate]) -> None:
        compared = {kind: self._compared(f"{kind} {epoch}", each.detections) for kind, each in candidates.items()}
        if not self._peers.is_chief:
            return
        if candidates:
            threshold = self._hyperparameters.overlap_threshold
            scores = {kind: score([pair for _, pair in each], threshold) for kind, each in compared.items()}
            kind = max(scores, key=lambda each: scores[each].mean)
            self._log(epoch, scores, kind)
            if self._best is None or scores[kind].mean > self._best["mAP"]:
                logger.info(log_lines.best_model(scores[kind].mean))
                logger.info(log_lines.saved(str(self._save(candidates[kind].values))))
                self._best_values = candidates[kind].values
                self._kept = [(number, compact(pair)) for number, pair in compared[kind]]
                self._best = {"epoch": epoch, "mAP": scores[kind].mean, "weights": kind}
            self._scores.append(scores[kind].mean)
            others = {f"mAP_of_{each}_weights": scores[each].mean for each in scores}
            entry = entry | {"validation": describe(scores[kind], self._names) | {"weights": kind} | others}
        self._epochs.append(entry)
        self._tell()

    def _compared(self, tag: str, detections: Sequence[Future[Detections] | None]) -> list[Kept]:
        """All images of all hosts in the order of one host; images without detections, as None says, are left out."""
        order = self._loader.order(0)
        own = {
            int(number): compare(self._dataset.samples[number], future.result())
            for number, future in zip(order, detections, strict=False)
            if future is not None
        }
        if self._peers.size == 1:
            return list(own.items())
        hosts = [unpacked(each) for each in self._peers.gather(tag, packed(own))]
        # Stable: where numbers are those of each host's own images, hosts follow each other by rank.
        numbered = [(number, rank, pair) for rank, each in enumerate(hosts) for number, pair in each.items()]
        numbered.sort(key=lambda item: item[0])
        return [(number if rank == self._peers.rank else None, pair) for number, rank, pair in numbered]

    def kept(self) -> tuple[list[Compared], list[Sample | None]]:
        """What the best model detects, and the images; of several hosts this one's images only, None for others'.

        Empty before the first score, and where the best model was found before an interruption.
        """
        samples = [None if number is None else self._dataset.samples[number] for number, _ in self._kept]
        return [pair for _, pair in self._kept], samples

    def add_to_metrics(self, documents: dict[str, Any]) -> None:
        """Let metrics.json also say this."""
        self._more |= documents
        self._tell()

    def metrics(self) -> dict[str, Any]:
        """What metrics.json says."""
        return {"definition": DEFINITION, "best": self._best, "epochs": self._epochs} | self._more

    def _tell(self) -> None:
        """Write metrics.json."""
        try:
            self._write_metrics(self.metrics())
        except OSError as error:
            logger.warning("metrics.json cannot be written (%s).", error)

    def _log(self, epoch: int, scores: dict[str, Score], kind: str) -> None:
        chosen = scores[kind]
        logger.info(log_lines.validation_map(self._peers.host, epoch, chosen.mean))
        if len(scores) > 1:
            by_kind = ", ".join(f"{each} {scores[each].mean:.4f}" for each in scores)
            logger.info("mAP of the weights of the last step and of their moving average: %s", by_kind)
        if chosen.coco.mean is not None:
            values = (chosen.coco.mean, chosen.coco.at_50 or 0.0, chosen.coco.at_75 or 0.0)
            logger.info(log_lines.coco_precision(*values))
        by_class = (f"{self._names.get(each, each)} {value.area:.3f}" for each, value in chosen.voc.items())
        logger.info("Average precision by class: %s", ", ".join(by_class))


def compact(pair: Compared) -> Compared:
    """The same in less memory, as thousands of images with hundreds of detections each are kept."""
    truth, scored = pair
    return truth, Scored(scored.boxes.astype(np.float32), scored.scores, scored.classes)


def packed(compared: Mapping[int, Compared]) -> bytes:
    """Numbered images as bytes, in the format of safetensors."""
    truths, scored = [each for each, _ in compared.values()], [each for _, each in compared.values()]
    lists: dict[str, list[NDArray[Any]]] = {
        "numbers": [np.asarray(list(compared), dtype=np.int64)],
        "objects": [np.asarray([len(each.classes) for each in truths], dtype=np.int64)],
        "detections": [np.asarray([len(each.classes) for each in scored], dtype=np.int64)],
        "boxes": [each.boxes.astype(np.float32).reshape(-1, 4) for each in truths],
        "classes": [each.classes.astype(np.int64) for each in truths],
        "difficult": [each.difficult.astype(np.uint8) for each in truths],
        "found_boxes": [each.boxes.astype(np.float64).reshape(-1, 4) for each in scored],
        "found_scores": [each.scores.astype(np.float32) for each in scored],
        "found_classes": [each.classes.astype(np.int64) for each in scored],
    }
    return save({name: np.concatenate(each) if each else np.zeros(0) for name, each in lists.items()})


def unpacked(body: bytes) -> dict[int, Compared]:
    """Numbered images from what `packed` made."""
    arrays = load(body)
    numbers = arrays["numbers"].tolist()
    objects, detections = np.cumsum(arrays["objects"])[:-1], np.cumsum(arrays["detections"])[:-1]
    if not numbers:
        return {}
    boxes, classes, difficult = (np.split(arrays[name], objects) for name in ("boxes", "classes", "difficult"))
    found = [np.split(arrays[f"found_{name}"], detections) for name in ("boxes", "scores", "classes")]
    truths = [Truth(*each[:2], each[2].astype(np.bool_)) for each in zip(boxes, classes, difficult, strict=True)]
    return dict(
        zip(numbers, zip(truths, (Scored(*each) for each in zip(*found, strict=True)), strict=True), strict=True)
    )


def finite(values: dict[str, NDArray[np.float32]], epoch: int, rate: float) -> dict[str, NDArray[np.float32]]:
    """The values, which are fit to be saved.

    Raises
    ------
    UserError
        When one is not finite: the loss of the epoch's last step, before its update, can still have been.
    """
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise diverged(f"Parameter {name} is not finite after epoch {epoch}", rate)
    return values
