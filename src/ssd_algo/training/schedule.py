"""Learning rate and early stopping as pure functions."""

from collections.abc import Sequence

from ssd_algo.contract.hyperparameters import Hyperparameters


def learning_rate(hyperparameters: Hyperparameters, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0: reduced once for each step that lies behind."""
    behind = sum(step <= epoch for step in hyperparameters.lr_scheduler_step)
    return hyperparameters.learning_rate * hyperparameters.lr_scheduler_factor**behind


def should_stop(hyperparameters: Hyperparameters, scores: Sequence[float]) -> bool:
    """Whether early stopping ends the training after these epochs' validation mAPs.

    An epoch improves when its mAP exceeds the best before by more than `early_stopping_tolerance` of that best.
    """
    if not hyperparameters.early_stopping or len(scores) < hyperparameters.early_stopping_min_epochs:
        return False
    best, waited = scores[0], 0
    for score in scores[1:]:
        if score - best > hyperparameters.early_stopping_tolerance * best:
            best, waited = score, 0
        else:
            waited += 1
    return waited >= hyperparameters.early_stopping_patience
