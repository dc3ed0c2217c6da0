"""Matching a network's classes with a dataset's."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import UsageError
from pipeline.dataset.manifest import ClassInfo
from trainer.models.classifier import Spec
from trainer.runs.class_match import classes_of_outputs, imagenet_wnids, match_classes

FILE = Path("net.pt")
WNIDS = imagenet_wnids()
TENCH, SHARK, CORGI, SWEATER = "n01440764", "n01484850", "n02113186", "n02963159"
NAMES = {
    TENCH: "tench, Tinca tinca",
    SHARK: "great white shark, white shark",
    CORGI: "Cardigan, Cardigan Welsh corgi",
    SWEATER: "cardigan",
}


def match(network, data, by="name"):
    """Match classes, each given as an id or as (id, name)."""
    ours, theirs = (
        [ClassInfo(*((one, one) if isinstance(one, str) else one)) for one in given]
        for given in (network, data)
    )
    spec = Spec(
        arch="alexnet",
        width=1,
        crop=64,
        classes=tuple(info.id for info in ours),
        size=72,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        mean_image=False,
        names=tuple(info.name for info in ours),
    )
    dataset = SimpleNamespace(
        url="DATA",
        manifest=SimpleNamespace(classes=tuple(theirs)),
        classes=[info.id for info in theirs],
    )
    return match_classes(FILE, spec, dataset, by)


IMAGENET = [(wnid, NAMES[wnid]) for wnid in (TENCH, SHARK, CORGI, SWEATER)]


@pytest.mark.parametrize(
    ("network", "data", "by", "outputs"),
    [
        (IMAGENET, [SWEATER, "n00000000", TENCH], "id", (3, None, 0)),
        (["0", "1", "2"], ["0", "1", "2"], "id", (0, 1, 2)),  # numbers: all are the same
        (IMAGENET, ["Great_White_Shark", "tench"], "name", (1, 0)),
        (IMAGENET, ["tench", "white shark", "great white shark", "Cardigan"], "name", (0, None, 1, None)),
        (IMAGENET, ["cardigan", "tench", "Cardigan, Cardigan Welsh corgi"], "name", (3, 0, 2)),
        (["cardigan", "tench"], IMAGENET, "name", (1, None, None, 0)),
        (IMAGENET, [("0", NAMES[TENCH]), ("1", NAMES[SHARK])], "name", (0, 1)),
        (["tench", "Tench", "ray", "eel"], ["tench", "TENCH", "Ray", "eel"], "id", (0, None, None, 3)),
    ],
)
def test_ids_decide_or_else_names(network, data, by, outputs):
    found = match(network, data)
    assert (found.by, found.network, found.outputs) == (by, len(network), outputs)


@pytest.mark.parametrize(
    ("network", "data", "by", "message"),
    [
        (IMAGENET, ["0", "1", "2", "3"], "name", "share fewer than two .*give --classes-by order"),
        (["0", "1", "2"], ["0", "1"], "name", "share fewer than two .*give data with classes of the network"),
        (IMAGENET, [TENCH, "n00000000"], "name", "share fewer than two "),
        # The same names, but other WNIDs: these are other classes.
        (
            IMAGENET,
            [("n00000001", NAMES[TENCH]), ("n00000002", NAMES[SHARK])],
            "name",
            "share fewer than two ",
        ),
        (
            IMAGENET,
            ["0", "1"],
            "order",
            "equal numbers of classes, but the network has 4 and DATA has 2",
        ),
    ],
)
def test_classes_that_do_not_match_are_refused(network, data, by, message):
    with pytest.raises(UsageError, match=message):
        match(network, data, by)


def test_by_order_class_i_is_output_i():
    found = match(IMAGENET, ["0", "1", "2", "3"], "order")
    assert (found.by, found.outputs) == ("order", (0, 1, 2, 3))


NUMBERS = [str(number) for number in range(1000)]


def test_a_thousand_outputs_without_names_are_imagenets_classes_only_where_the_data_has_wnids(shared_data):
    text = (shared_data / "imagenet-meta" / "LOC_synset_mapping.txt").read_text()
    assert [line.split()[0] for line in text.splitlines()] == list(WNIDS)
    for data in (WNIDS, WNIDS[::-1], WNIDS[5:300:7]):
        assert classes_of_outputs(FILE, 1000, data, "name")[0] == WNIDS
    assert classes_of_outputs(FILE, 1000, NUMBERS, "order")[0] == tuple(NUMBERS)
    assert classes_of_outputs(FILE, 3, ["a", "b", "c"], "name")[0] == ("a", "b", "c")
    for outputs, data, by, message in (
        (1000, NUMBERS, "name", "1,000 outputs without names.* no WNIDs, such as '0'; .*--classes-by order"),
        (1000, ["a", "b"], "name", "1,000 outputs, but the data has 2 classes and no WNIDs, such as 'a'"),
        (1000, WNIDS[:200], "order", "1,000 outputs, but the data has 200 classes"),
        (10, ["a", "b"], "name", "10 outputs, but the data has 2 classes; evaluate on data"),
    ):
        with pytest.raises(UsageError, match=message):
            classes_of_outputs(FILE, outputs, data, by)
