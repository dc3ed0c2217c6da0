"""Which output of a network is which class of a dataset, where they have other classes or another order.

Networks are measured on datasets of other classes over the shared ones, as the papers of ImageNet-A and
ImageNet-R do: the logits of the network's other classes are left out before the softmax.

Shapes: K classes of the dataset.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import UsageError
from pipeline.sources.labelers.wnids import WNID
from trainer.models.classifier import Classifier, Spec
from trainer.runs.state_dict import capped

ClassesBy = Literal["name", "order"]
"""How classes are matched: by id (such as a WNID) or else by name; or class i of the data is output i."""


@dataclass(frozen=True)
class ClassMatch:
    """Which output of a network is which class of a dataset.

    Attributes:
        by: What matched them: "order", "id" or "name".
        network: Number of the network's classes.
        outputs: Number of the output of each of the dataset's classes, in label order; None for a class that
            the network does not have.
    """

    by: Literal["order", "id", "name"]
    network: int
    outputs: tuple[int | None, ...]

    def without(self, labels: Collection[int]) -> "ClassMatch":
        """Return a match that leaves out these classes of the dataset."""
        outputs = (None if label in labels else output for label, output in enumerate(self.outputs))
        return replace(self, outputs=tuple(outputs))


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the WNIDs of the 1,000 classes of ILSVRC 2012, sorted: the order of networks' outputs."""
    return tuple((resources.files("trainer.runs") / "imagenet_wnids.txt").read_text("ascii").split())


def classes_of_outputs(
    file: Path, outputs: int, classes: Sequence[str], by: ClassesBy
) -> tuple[tuple[str, ...], str]:
    """Assume which classes the outputs of a network are that does not name them.

    Args:
        file: The network's file, for messages.
        outputs: Number of its outputs.
        classes: Class ids of the dataset, in label order.
        by: "order" takes the dataset's classes, whatever they are.

    Returns:
        Class ids in the order of the outputs, and a sentence that says what is assumed.

    Raises:
        UsageError: There are not as many outputs as classes, and these are not ImageNet's 1,000.
    """
    imagenet = outputs == len(imagenet_wnids())
    if by == "name" and imagenet and all(map(WNID.fullmatch, classes)):
        same = "the data's" if list(imagenet_wnids()) == list(classes) else "ImageNet's"
        return imagenet_wnids(), f"its 1,000 outputs are assumed to be {same} 1,000 classes, in order"
    if outputs != len(classes):
        no_wnids = f" and no WNIDs, such as {classes[0]!r}" if imagenet else ""
        raise UsageError(
            f"{file}: has {outputs:,} outputs, but the data has {len(classes):,} classes{no_wnids}; evaluate "
            "on data with the classes that it was trained on"
        )
    if by == "name" and imagenet:
        raise UsageError(
            f"{file}: has 1,000 outputs without names, and the data's classes are no WNIDs, such as "
            f"{classes[0]!r}; if output i is the data's class i, give --classes-by order"
        )
    count = f"{outputs:,}"
    return tuple(classes), f"its {count} outputs are assumed to be the data's {count} classes, in order"


def match_classes(file: Path, spec: Spec, dataset: Dataset, by: ClassesBy) -> ClassMatch:
    """Find the output of each of a dataset's classes.

    By name, the ids decide if two or more are shared. Ids that are numbers name nothing: they count only
    where all ids are the same. Otherwise the names decide: whole names, or else the part before a comma in
    any case. A name that several classes have matches none.

    Args:
        file: The network's checkpoint, for messages.
        spec: The network's classes.
        dataset: The dataset.
        by: How to match them.

    Raises:
        UsageError: They share fewer than two classes, or by order, their numbers differ.
    """
    infos = dataset.manifest.classes
    count = len(spec.classes)
    if by == "order":
        if count != len(infos):
            raise UsageError(
                f"{file}: --classes-by order needs equal numbers of classes, but the network has {count:,} "
                f"and {dataset.url} has {len(infos):,}; leave the option out to match them by name"
            )
        return ClassMatch("order", count, tuple(range(count)))
    if list(spec.classes) == dataset.classes:
        return ClassMatch("id", count, tuple(range(count)))
    by_id = _by_id(spec, infos)
    if _shared(by_id) >= 2:
        return ClassMatch("id", count, by_id)
    by_name = _by_name(spec, infos)
    if _shared(by_name) >= 2:
        return ClassMatch("name", count, by_name)
    remedy = "; if the data's class i is the network's class i, give --classes-by order"
    raise UsageError(
        f"{file}: its {count:,} classes and the {len(infos):,} of {dataset.url} share fewer than two (the "
        f"network's: {capped(list(spec.classes))}; the data's: {capped(dataset.classes)})"
        f"{remedy if count == len(infos) else '; give data with classes of the network'}"
    )


def over_classes(classifier: Classifier, match: ClassMatch, classes: Sequence[ClassInfo]) -> None:
    """Reduce a classifier to a dataset's classes, in place: its outputs are theirs, in label order.

    The last layer keeps the rows of the shared classes, so that the softmax is over these alone. The logit of
    a class that the network lacks is −∞, its probability 0.

    Args:
        classifier: A network that is not compiled.
        match: Which of its outputs are the dataset's classes.
        classes: The dataset's K classes.
    """
    ids, names = tuple(info.id for info in classes), tuple(info.name for info in classes)
    if classifier.spec.classes != ids:
        classifier.spec = replace(classifier.spec, classes=ids, names=names)
    if match.outputs == tuple(range(match.network)):
        return
    last = [module for module in classifier.model.modules() if isinstance(module, nn.Linear)][-1]
    rows = torch.tensor([0 if output is None else output for output in match.outputs])
    lacking = torch.tensor([output is None for output in match.outputs])
    with torch.no_grad():
        last.weight = nn.Parameter(last.weight[rows].masked_fill(lacking[:, None], 0.0))
        last.bias = nn.Parameter(last.bias[rows].masked_fill(lacking, -math.inf))
    last.out_features = len(classes)


def refuse_other_classes(file: Path, spec: Spec, dataset: Dataset) -> None:
    """Refuse a dataset whose classes are not a network's, in the same order.

    Args:
        file: The network's checkpoint, for the message.
        spec: The network's classes.
        dataset: The dataset.

    Raises:
        UsageError: The classes differ; the message names some that only one of them has.
    """
    ours, theirs = spec.classes, dataset.classes
    if list(ours) == theirs:
        return
    only = {"checkpoint": sorted(set(ours) - set(theirs)), "data": sorted(set(theirs) - set(ours))}
    detail = "; ".join(f"only in the {where}: {capped(names)}" for where, names in only.items() if names)
    raise UsageError(
        f"{file}: trained on {len(ours)} classes, {dataset.url} has {len(theirs)} "
        f"({detail or 'in another order'}); give data with the same classes"
    )


def _shared(outputs: Iterable[int | None]) -> int:
    return sum(output is not None for output in outputs)


def _by_id(spec: Spec, infos: Sequence[ClassInfo]) -> tuple[int | None, ...]:
    ids = [info.id for info in infos]
    if all(map(_is_number, ids)) or all(map(_is_number, spec.classes)):
        return (None,) * len(ids)
    return _matched(spec.classes, ids)


def _by_name(spec: Spec, infos: Sequence[ClassInfo]) -> tuple[int | None, ...]:
    """Match whole names, and then the classes that are left by the first of their names, in any case."""
    if all(map(WNID.fullmatch, [*spec.classes, *(info.id for info in infos)])):
        return (None,) * len(infos)  # another WNID is another class, whatever its name
    ours, theirs = spec.names or spec.classes, [info.name for info in infos]
    whole = _matched(ours, theirs)
    first = _matched(ours, theirs, _first_name)
    return tuple(
        (None if other in whole else other) if output is None else output
        for output, other in zip(whole, first, strict=True)
    )


def _matched(
    ours: Sequence[str], theirs: Sequence[str], key: Callable[[str], str] = str
) -> tuple[int | None, ...]:
    """Return the position in `ours` of each of `theirs`; None for unknown and repeated keys, and numbers."""
    counts = [Counter(map(key, names)) for names in (ours, theirs)]
    position = {key(name): number for number, name in enumerate(ours)}
    return tuple(
        position[name] if all(count[name] == 1 for count in counts) and not _is_number(name) else None
        for name in map(key, theirs)
    )


def _first_name(name: str) -> str:
    return name.partition(",")[0].replace("_", " ").strip().casefold()


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()
