"""What a recipe adds to the documented hyperparameters; docs/recipe.md has the reasons and the measured effects."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes
    ----------
    warm_up : float
        Share of all steps over which the learning rate rises linearly from 0 (Goyal et al. 2017, section 2.2).
    longest_warm_up : int
        Steps after which it is over however long the training is.
    clipped_norm : float or None
        The gradient's largest L2 norm over all parameters, for the mean loss of a batch (Pascanu et al. 2013).
    decayed : tuple of str
        Ends of the names of the parameters that weight decay acts on.
    average : float or None
        Share of all steps that the exponential moving average of the weights looks back on (Polyak and Juditsky 1992).
    """

    warm_up: float
    longest_warm_up: int
    clipped_norm: float | None
    decayed: tuple[str, ...]
    average: float | None


RECIPES = {
    "builtin": Recipe(warm_up=0, longest_warm_up=0, clipped_norm=None, decayed=("_weight", "_gamma"), average=None),
    "modern": Recipe(warm_up=0.05, longest_warm_up=1000, clipped_norm=10.0, decayed=("_weight",), average=0.05),
}
