"""What hosts agree on before the first step: that they are about to train the same, and who takes which images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ssd_algo import __version__
from ssd_algo.contract.container import Channel
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data.loader import Share
from ssd_algo.training.data import TrainingData, fingerprint
from ssd_algo.training.peers import Disagreement, Peers


def agree(
    peers: Peers, configuration: Mapping[str, str], data: TrainingData, channels: Mapping[str, Channel]
) -> TrainingData:
    """See that all hosts are about to train the same; returns the data with the class names of all hosts.

    Raises
    ------
    UserError
        Naming the first thing in which one differs.
    """
    if peers.size == 1:
        return data
    facts: dict[str, Any] = {"version of ssd-algo": __version__, "channels": ", ".join(sorted(channels))}
    facts |= {f"hyperparameter {name}": value for name, value in configuration.items()}
    for name, dataset in (("train", data.train), ("validation", data.validation)):
        facts[f"distribution of channel {name}"] = "ShardedByS3Key" if channels[name].sharded else "FullyReplicated"
        if not channels[name].sharded:
            known = fingerprint(dataset)
            facts[f"number of images of channel {name}"] = known["images"]
            facts[f"files of channel {name}"] = f"names with the checksum {known['names']:08x}"
    names = {str(identity): name for identity, name in data.class_names.items()}
    answers = peers.exchange("facts", [facts, names])
    difference = first_difference(peers.names, [each for each, _ in answers])
    if difference:
        raise Disagreement(difference)
    return replace(data, class_names=merged_class_names(peers.names, [each for _, each in answers]))


def first_difference(hosts: Sequence[str], facts: Sequence[Mapping[str, object]]) -> str | None:
    """In what one host differs from the first, as a sentence; None when in nothing."""
    for host, other in zip(hosts[1:], facts[1:], strict=True):
        for name in [*facts[0], *other]:
            ours, theirs = (each.get(name, "none") for each in (facts[0], other))
            if ours != theirs:
                return (
                    f"The hosts do not agree on the {name}: {hosts[0]} has {ours}, {host} has {theirs}; give all hosts "
                    "the same."
                )
    return None


def merged_class_names(hosts: Sequence[str], names: Sequence[Mapping[str, str]]) -> dict[int, str]:
    """Class id to name, of hosts of which each knows the classes of its own images.

    Raises
    ------
    UserError
        When two call a class differently.
    """
    merged: dict[str, tuple[str, str]] = {}
    for host, own in zip(hosts, names, strict=True):
        for identity, name in own.items():
            known, who = merged.setdefault(identity, (name, host))
            if known != name:
                raise Disagreement(
                    f'Class {identity} is "{known}" in the data of {who}, but "{name}" in that of {host}; use one '
                    "name, and the same order of classes."
                )
    return {int(identity): merged[identity][0] for identity in sorted(merged, key=int)}


def training_share(
    peers: Peers, count: int, hyperparameters: Hyperparameters, channels: Mapping[str, Channel]
) -> Share:
    """What this host trains on: its part of `count` images, or all of its own; with as many steps as every other host.

    Of a stream nobody knows how many are each host's own: an equal part of what num_training_samples says.

    Raises
    ------
    UserError
        When there are fewer images than hosts.
    """
    if peers.size == 1:
        return Share()
    sharded, piped = channels["train"].sharded, channels["train"].input_mode == "Pipe"
    if not sharded and count < peers.size:
        raise Disagreement(f"Channel train has {count} images for {peers.size} hosts; use fewer hosts.")
    most = max(peers.exchange("images", count)) if sharded and not piped else -(-count // peers.size)
    steps = -(-most // hyperparameters.mini_batch_size)
    if sharded:
        return Share(steps=steps, draws=(peers.rank,))
    # Numbers of a stream's images are each host's own.
    return Share(first=peers.rank, every=peers.size, steps=steps, draws=(peers.rank,) if piped else ())


def validation_share(peers: Peers, channels: Mapping[str, Channel]) -> Share:
    """What this host validates on."""
    return Share() if channels["validation"].sharded else Share(first=peers.rank, every=peers.size)
