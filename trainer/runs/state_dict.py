"""Find a network's state dict in another program's checkpoint, whatever its wrappers added to the keys."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.arguments import checked
from pipeline.errors import UsageError

WeightsChoice = Literal["ema", "model"]
"""Which weights of a checkpoint: their exponential moving average (EMA), or the model's own."""

# Names, between the dots of a key, that wrappers add: DataParallel, torch.compile, Lightning and others; and
# the keys under which checkpoints hold their state dict. None is a layer of ours.
_WRAPPERS = frozenset(
    ["module", "_orig_mod", "model", "backbone", "net", "network", "state_dict", "model_state_dict"]
)
# `state_dict_ema` is timm's name, `model_ema` torchvision's; others write `ema_model.` or `averaged_model.`.
_AVERAGED = re.compile(r"(^|_)(ema|averaged|swa)(_|$)")
_SHOWN = 5


@dataclass(frozen=True)
class _Leaf:
    """A tensor in a checkpoint, with the dict keys that lead to it."""

    path: tuple[str, ...]
    tensor: Tensor

    @property
    def key(self) -> str:
        return self.path[-1]


@dataclass(frozen=True)
class FoundState:
    """A network's state dict in a checkpoint.

    Attributes:
        state: Tensors by the names that were wanted; some may be missing.
        unused: Keys beside them that are not wanted.
        notes: What was taken and what was removed from the keys, one line each.
    """

    state: dict[str, Tensor]
    unused: tuple[str, ...]
    notes: tuple[str, ...]


_Network = dict[str, list[_Leaf]]
"""Wanted name → the tensors of that name; more than one where only their wrappers differ."""


@checked()
def find_state(content: Any, wanted: Iterable[str], weights: WeightsChoice | None, path: Path) -> FoundState:
    """Find the state dict of one network in the content of a file.

    A key fits a wanted name where it ends in it, once the names that wrappers add are removed anywhere:
    `module.features.0.weight` and `features.module.0.weight` both fit `features.0.weight`. Keys that have the
    same beginning before the wanted name are one network.

    Args:
        content: What the file holds: a state dict, or dicts that hold it at any depth. Weights are tensors
            or NumPy arrays.
        wanted: Names in the network's state dict.
        weights: Which weights to take where the file holds averaged ones too; None for those, if there
            are any.
        path: The file, for messages.

    Raises:
        UsageError: The file holds no tensors, several networks, or not the `weights` that are asked for.
    """
    leaves = list(_leaves(content))
    if not leaves:
        inside = (
            f" (its keys: {capped([*map(str, content)])})" if isinstance(content, dict) and content else ""
        )
        raise UsageError(f"{path}: holds no state dict{inside}; save the model's state_dict()")
    names = set(wanted)
    networks = _networks(leaves, names)
    whole = {start: network for start, network in networks.items() if len(network) == len(names)}
    averaged = {start: network for start, network in whole.items() if _is_averaged(start)}
    plain = {start: network for start, network in whole.items() if start not in averaged}
    notes = []
    if not whole:
        best = max(networks.values(), key=len, default={})
    elif weights == "ema" and not averaged:
        raise UsageError(f"{path}: holds no averaged (EMA) weights; leave --weights ema out")
    elif weights == "model" and not plain:
        raise UsageError(f"{path}: holds averaged (EMA) weights only; leave --weights model out")
    else:
        chosen = plain if weights == "model" or not averaged else averaged
        best = _only(chosen, path)
        if averaged:
            other = "; --weights model takes the model's own" if plain and chosen is averaged else ""
            kind = "averaged (EMA)" if chosen is averaged else "model's own"
            name, leaf = next((name, found[0]) for name, found in best.items())
            notes.append(f"{path}: takes the {kind} weights, {_beginning(leaf, name)}*{other}")
    taken = {name: found[0] for name, found in best.items()}
    removed = sorted({text for name, leaf in taken.items() if (text := _removed(leaf.key, name))})
    if removed:
        example = next(leaf.key for name, leaf in taken.items() if leaf.key != name)
        notes.append(f"{path}: removed {capped(removed)} from its keys, such as {example}")
    used = {leaf.path for network in (*whole.values(), best) for found in network.values() for leaf in found}
    [(largest, _)] = Counter(leaf.path[:-1] for leaf in leaves).most_common(1)
    dicts = {leaf.path[:-1] for leaf in taken.values()} or {largest}
    unused = [leaf.key for leaf in leaves if leaf.path[:-1] in dicts and leaf.path not in used]
    return FoundState({name: leaf.tensor for name, leaf in taken.items()}, tuple(unused), tuple(notes))


def capped(names: list[str]) -> str:
    """List the first five names, and say how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _leaves(content: Any, path: tuple[str, ...] = ()) -> Iterator[_Leaf]:
    if isinstance(content, dict):
        for key, value in content.items():
            if isinstance(key, str):
                yield from _leaves(value, (*path, key))
    elif path and isinstance(content, Tensor):
        yield _Leaf(path, content)
    elif path and isinstance(content, np.ndarray):
        yield _Leaf(path, torch.from_numpy(content.astype(content.dtype.newbyteorder("="))))


def _networks(leaves: Iterable[_Leaf], wanted: set[str]) -> dict[tuple[str, ...], _Network]:
    """Group the tensors of wanted names by what stands before these names, apart from wrappers."""
    networks: dict[tuple[str, ...], _Network] = defaultdict(dict)
    for leaf in leaves:
        words = [word for key in leaf.path for word in key.split(".") if word not in _WRAPPERS]
        for start in range(len(words)):
            name = ".".join(words[start:])
            if name in wanted:
                networks[tuple(words[:start])].setdefault(name, []).append(leaf)
    return networks


def _is_averaged(start: tuple[str, ...]) -> bool:
    return any(_AVERAGED.search(word) for word in start)


def _only(networks: dict[tuple[str, ...], _Network], path: Path) -> _Network:
    """Return the only network.

    Raises:
        UsageError: There are several, of which one cannot be chosen.
    """
    first = [next(iter(network.items())) for network in networks.values()]
    choices = [_beginning(found[0], name) for name, found in first]
    if len(networks) == 1:
        for name, found in next(iter(networks.values())).items():
            if not all(torch.equal(leaf.tensor, found[0].tensor) for leaf in found):
                choices = [_beginning(leaf, name) for leaf in found]
                break
    if len(choices) > 1:
        shown = " and ".join(f"{choice}*" for choice in choices)
        raise UsageError(
            f"{path}: holds {len(choices)} networks, {shown}; save the state dict of one of them alone"
        )
    return next(iter(networks.values()))


def _beginning(leaf: _Leaf, name: str) -> str:
    """Return the dict keys and prefixes that lead to a name: `state_dict.module.`."""
    return ".".join(leaf.path).removesuffix(name)


def _removed(key: str, name: str) -> str:
    """Return what stands in a key besides the name: `module.` of `features.module.0.weight`."""
    words, kept = key.split("."), name.split(".")
    removed = []
    while words:
        word = words.pop()
        if kept and word == kept[-1]:
            kept.pop()
        else:
            removed.append(word)
    return "".join(f"{word}." for word in reversed(removed))
