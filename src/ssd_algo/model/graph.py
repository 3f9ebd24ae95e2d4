"""MXNet's symbols as JSON, read with every doubt: what a graph of ours may hold, and a part of it cut out."""

import ast
import json
from collections.abc import Collection, Iterable
from typing import Any

Node = dict[str, Any]

# Where a network ends: class logits, background first, and box offsets.
OUTPUTS = ("class_logits", "box_offsets")
INPUT = "data"

# What a network is made of, up to its outputs; `model.onnx_graph` converts each of them.
OPERATORS = frozenset(
    {
        "Activation",
        "BatchNorm",
        "Concat",
        "Convolution",
        "Dropout",
        "Flatten",
        "L2Normalization",
        "Pooling",
        "Reshape",
        "_copy",
        "_mul_scalar",
        "broadcast_add",
        "broadcast_div",
        "broadcast_mul",
        "broadcast_sub",
        "elemwise_add",
        "transpose",
    }
)

# What reading a graph that is none may raise.
NONSENSE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    SyntaxError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    StopIteration,
)

# The largest network has 1,500 nodes, and no attribute of more than 50 characters.
_MOST_NODES, _MOST_CHARACTERS = 20_000, 1_000


def parse(symbol: str) -> list[Node]:
    """A symbol's nodes, each with `op`, `name`, `attrs` and `inputs`, which come before it.

    Raises
    ------
    One of NONSENSE
        When it is no symbol.
    """
    nodes = [_node(each) for each in json.loads(symbol)["nodes"]]
    if len(nodes) > _MOST_NODES:
        raise ValueError(f"{len(nodes)} nodes")
    if sum(node["op"] == "null" and node["name"] == INPUT for node in nodes) != 1:
        raise ValueError(f"not one input {INPUT}")
    if any(not 0 <= source < number for number, node in enumerate(nodes) for source, *_ in node["inputs"]):
        raise ValueError("a node comes before its inputs")
    # Two operators may have one name, which tells two variables apart.
    seen: set[str] = set()
    for number, node in enumerate(nodes):
        if node["op"] != "null" and node["name"] in seen:
            node["name"] = f"{node['name']}_{number}"
        seen.add(node["name"])
    return nodes


def _node(given: Node) -> Node:
    # Under whichever of the names that releases of MXNet gave an operator's settings.
    attributes = {
        str(name): str(value)
        for name, value in (given.get("attrs") or given.get("attr") or given.get("param") or {}).items()
    }
    if any(len(value) > _MOST_CHARACTERS for value in attributes.values()):
        raise ValueError(f"an attribute of {given['name']} is too long")
    inputs = [[int(number) for number in each] for each in given["inputs"]]
    return {"op": str(given["op"]), "name": str(given["name"]), "attrs": attributes, "inputs": inputs}


def numbers(text: str) -> tuple[Any, ...]:
    """The numbers that an attribute holds, one or several."""
    value = ast.literal_eval(text)
    found = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not all(isinstance(each, int | float) for each in found):
        raise ValueError(f"{text} holds no numbers")
    return found


def reachable(nodes: list[Node], ends: Iterable[int]) -> list[int]:
    """Numbers of the nodes that others are made of, and of those, in their order."""
    found: set[int] = set()
    waiting = list(ends)
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting.extend(source for source, *_ in nodes[number]["inputs"])
    return sorted(found)


def to_json(nodes: list[Node], heads: Iterable[int], original: str) -> str:
    """A symbol of these nodes, which MXNet reads as of the release that wrote the original."""
    release = json.loads(original).get("attrs", {}).get("mxnet_version", ["int", 10901])
    return json.dumps(
        {
            "nodes": nodes,
            "arg_nodes": [number for number, node in enumerate(nodes) if node["op"] == "null"],
            "heads": [[each, 0, 0] for each in heads],
            "attrs": {"mxnet_version": ["int", int(release[1])]},
        }
    )


def network_of(symbol: str) -> str:
    """The part of one of our symbols up to its logits and offsets, of known operators only.

    Raises
    ------
    ValueError
        When it has none.
    """
    try:
        nodes = parse(symbol)
        places = {node["name"]: number for number, node in enumerate(nodes)}
        ends = [places[name] for name in OUTPUTS]
        kept = reachable(nodes, ends)
        check_operators(nodes[number] for number in kept)
        new = {number: place for place, number in enumerate(kept)}
        made = [
            nodes[number] | {"inputs": [[new[source], *rest] for source, *rest in nodes[number]["inputs"]]}
            for number in kept
        ]
        return to_json(made, [new[end] for end in ends], symbol)
    except NONSENSE as error:
        raise ValueError(f"the graph is not one that training writes ({error!r})") from error


def check_operators(nodes: Iterable[Node], known: Collection[str] = OPERATORS) -> None:
    """See that there is no operator but those of a network.

    Raises
    ------
    ValueError
    """
    for node in nodes:
        if node["op"] not in known and node["op"] != "null":
            raise ValueError(f"operator {node['op']} of {node['name']}")


def class_heads(nodes: list[Node]) -> tuple[list[Node], list[Node]]:
    """The convolutions that class logits come from, and the reshapings behind them."""
    (end,) = (number for number, node in enumerate(nodes) if node["name"] == OUTPUTS[0])
    waiting, seen = [end], set()
    heads, reshapings = [], []
    while waiting:
        number = waiting.pop()
        node = nodes[number]
        if number in seen:
            continue
        seen.add(number)
        if node["op"] == "Convolution":
            heads.append(node)
            continue
        if node["op"] == "Reshape":
            reshapings.append(node)
        waiting += [source for source, *_ in node["inputs"]]
    return heads, reshapings


def foreground_classes(nodes: list[Node]) -> int:
    """How many classes the logits are for, without background."""
    _, reshapings = class_heads(nodes)
    (classes,) = {numbers(each["attrs"]["shape"])[-1] for each in reshapings}
    if not 1 < classes <= 10_001:
        raise ValueError(f"{classes} classes")
    return int(classes) - 1


def names_of_class_heads(symbol: str) -> frozenset[str]:
    """The parameters that have a row for each anchor of a cell and each class, `(per_cell x (C + 1), ...)`."""
    nodes = parse(symbol)
    heads, _ = class_heads(nodes)
    return frozenset(str(nodes[source]["name"]) for head in heads for source, *_ in head["inputs"][1:])


def with_classes(symbol: str, num_classes: int) -> str:
    """The same network for another number of classes."""
    nodes = parse(symbol)
    old = foreground_classes(nodes) + 1
    heads, reshapings = class_heads(nodes)
    for node in reshapings:
        node["attrs"]["shape"] = f"(0, -1, {num_classes + 1})"
    for node in heads:
        node["attrs"]["num_filter"] = str(int(node["attrs"]["num_filter"]) // old * (num_classes + 1))
    places = {node["name"]: number for number, node in enumerate(nodes)}
    return to_json(nodes, [places[name] for name in OUTPUTS], symbol)
