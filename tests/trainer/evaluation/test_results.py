"""An evaluation written as JSON, Markdown and CSV, read back by the standard library."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from trainer.evaluation.evaluate import ClassMetrics, Evaluation, SharedClasses
from trainer.evaluation.label_sets import LabelScore
from trainer.evaluation.metrics import Metrics
from trainer.evaluation.results import (
    RESULTS,
    by_accuracy,
    is_imagenet_validation,
    markdown,
    name_of,
    over_shared,
    write_confusion,
    write_json,
)


def result(classes=("cat", "dog|s", "newt"), samples=400, checkpoints=("runs/a/best.pt",)):
    per_class = [
        ClassMetrics(name, name, 4, 0.25 * (3 - number % 3), 1.0, None, 0.0)
        for number, name in enumerate(classes)
    ]
    return Evaluation(
        checkpoints=checkpoints,
        ensemble_weights=(1.0,) * len(checkpoints),
        split="val",
        views="ten-crop",
        precision="float32",
        classes=len(classes),
        shared=SharedClasses(
            labels=tuple(range(len(classes))),
            data=len(classes),
            networks=(len(classes),),
            by=("id",),
            images_left_out=7,
        ),
        metrics=Metrics(samples, 0.6, 0.82, (0.55, 0.65), (0.78, 0.86), 1.5, 0.02, 0.1),
        per_class=(*per_class[:-1], ClassMetrics(classes[-1], "a newt", 0, None, None, None, None)),
        notes=("a note",),
        confusion=np.arange(9).reshape(3, 3),
    )


SCORE = LabelScore("data/real.json", 380, 20, 0.7, 0.9, (0.65, 0.75), (0.87, 0.93))


@pytest.mark.parametrize(
    ("network", "by", "text"),
    [
        (3, "id", ""),
        (3, "order", "the classes of networks and data are matched by order"),
        (
            10,
            "name",
            "over 3 shared classes, of the network's 10 and the data's 3, matched by name; left out ",
        ),
    ],
)
def test_the_classes_are_stated_where_they_are_not_the_same(network, by, text):
    shared = SharedClasses(labels=(0, 1, 2), data=3, networks=(network,), by=(by,), images_left_out=7)
    evaluation = replace(result(), shared=shared)
    assert over_shared(evaluation).startswith(text)
    assert bool(over_shared(evaluation)) == bool(text)
    assert markdown(evaluation).endswith(f"\n\n{over_shared(evaluation)}.\n") == bool(text)


def rows_of(table):
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]


def imagenets_wnids(shared_data):
    lines = (shared_data / "imagenet-meta" / "LOC_synset_mapping.txt").read_text().splitlines()
    return [line.split()[0] for line in lines]


def test_json_holds_all_figures(tmp_path):
    write_json(tmp_path / "r.json", result(), [SCORE])
    saved = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    keys = "checkpoints ensemble_weights split views precision classes shared_classes metrics per_class"
    assert list(saved) == [*keys.split(), "labels", "notes"]
    counts = {"shared": 3, "data": 3, "networks": [3], "by": ["id"], "images_left_out": 7}
    assert saved["shared_classes"] == counts
    assert saved["metrics"]["top1_interval"] == [0.55, 0.65]
    assert saved["metrics"]["ece"] == 0.02
    cat = {"id": "cat", "name": "cat", "samples": 4, "top1": 0.75, "top5": 1.0}
    assert saved["per_class"][0] == cat | {"confused_with": None, "confused_share": 0.0}
    assert saved["per_class"][2]["top1"] is None
    assert saved["labels"][0]["source"] == "data/real.json"
    assert (saved["checkpoints"], saved["notes"]) == (["runs/a/best.pt"], ["a note"])


def test_a_table_of_ours_alone():
    head, rule, ours, real = rows_of(markdown(result(), [SCORE]))
    assert len(head) == len(rule) == len(ours) == 5
    assert ours == ["runs/a/best.pt", "ten-crop", "400", "40.00 % (35.00–45.00)", "18.00 % (14.00–22.00)"]
    assert real[0] == "runs/a/best.pt, labels of real.json"
    assert real[2:] == ["380", "30.00 % (25.00–35.00)", "10.00 % (7.00–13.00)"]


def test_names_in_a_table():
    assert r"| runs/a\|b.pt |" in markdown(result(checkpoints=("runs/a|b.pt",)))
    assert name_of(result(checkpoints=("a", "b"))) == "ensemble of 2"


def test_on_imagenet_published_results_stand_below(shared_data):
    wnids = imagenets_wnids(shared_data)
    table = markdown(result(classes=wnids, samples=50_000))
    assert "| AlexNet, one network (the 2012 paper, table 2) | ten-crop | 50,000 | 40.7 % | 18.2 % |" in table
    assert "| ten-crop | 50,000 | 40.664 % | 18.21 % |" in table
    assert len(rows_of(table)) == 3 + len(RESULTS)


def test_imagenets_validation_set_is_known_by_its_wnids(shared_data):
    wnids = imagenets_wnids(shared_data)
    assert is_imagenet_validation(reversed(wnids), 50_000)
    assert not is_imagenet_validation(wnids, 49_999)
    assert not is_imagenet_validation([*wnids[:-1], "n00000001"], 50_000)
    assert not is_imagenet_validation(wnids[:10], 50_000)


def test_classes_are_sorted_worst_first_without_those_of_no_image():
    assert [info.id for info in by_accuracy(result().per_class)] == ["dog|s", "cat", "newt"]


def test_the_confusion_matrix_has_ids_on_both_sides(tmp_path):
    write_confusion(tmp_path / "c.csv", result())
    with (tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["label", "cat", "dog|s", "newt"]
    assert [row[0] for row in rows[1:]] == ["cat", "dog|s", "newt"]
    assert np.array_equal(np.array([row[1:] for row in rows[1:]], int), np.arange(9).reshape(3, 3))
