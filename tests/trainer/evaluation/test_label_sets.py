"""Labels other than the dataset's: ImageNet-ReaL, and files of keys and labels."""

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.errors import UsageError
from trainer.evaluation.label_sets import LabelSet, read_labels, read_real_labels, score_labels
from trainer.evaluation.predictions import Predictions

CLASSES = ["cat", "dog", "newt", "7"]
KEYS = ["b", "a", "c.d", "e"]


def written(tmp_path, name, content):
    path = tmp_path / name
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def predictions(keys, classes):
    classes = np.array(classes)
    return Predictions(
        tuple(keys), np.full(len(keys), -1), classes, np.full(classes.shape, 0.1, dtype=np.float32)
    )


def real_accuracy(predicted, lists):
    """The definition of Beyer et al.: share of the labeled images whose prediction is in their list."""
    return np.mean([label in lists[i] for i, label in enumerate(predicted) if lists[i]])


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.permutations(range(4)), st.lists(st.integers(0, 3), max_size=3)), min_size=1, max_size=30
    ).filter(lambda rows: any(labels for _, labels in rows))
)
def test_real_labels_score_as_their_authors_do(tmp_path_factory, rows):
    keys = [f"p{number:03d}" for number in range(len(rows))]
    lists = [labels for _, labels in rows]
    path = written(tmp_path_factory.mktemp("real"), "real.json", lists)
    predicted = np.array([classes[:2] for classes, _ in rows])
    shuffled = np.random.default_rng(len(rows)).permutation(len(rows))  # predictions come in any order
    found = read_real_labels(path, [keys[i] for i in shuffled], CLASSES)
    got = score_labels(predictions([keys[i] for i in shuffled], predicted[shuffled]), found)
    assert got.top1 == real_accuracy(predicted[:, 0], lists)
    among = [bool({*classes} & {*labels}) for classes, labels in zip(predicted, lists, strict=True) if labels]
    assert got.top5 == np.mean(among)
    assert (got.samples, got.unlabeled) == (len(among), len(rows) - len(among))
    assert got.top1_interval[0] <= got.top1 <= got.top1_interval[1]


def test_imagenets_images_are_found_by_their_number(tmp_path):
    lists = [[0]] * 50_000
    lists[292], lists[49_999] = [1, 2], []
    path = written(tmp_path, "real.json", lists)
    keys = ["ILSVRC2012_val_00050000", "ILSVRC2012_val_00000293", "ILSVRC2012_val_00000001"]
    found = read_real_labels(path, keys, CLASSES)
    assert found.labels == {keys[1]: {1, 2}, keys[2]: {0}}
    assert found.unlabeled == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([[0], [1], [2]], "labels for 3 images, but the split has 4 images"),
        ([[0]] * 5, "labels for 5 images, but the split has 4"),
        ([[0], [1], [4], []], r"c\.d has the label 4, .* nor a number from 0 to 3"),
        ([[0], [1], [-1], []], "has the label -1"),
        ([[], [], [], []], "labels none of the split's 4 images"),
        ({"a": 1}, "not a list with a list of class numbers"),
        ([0, 1, 2, 3], "not a list with a list"),
        ("[[0], [1]", "as JSON"),
        ("", "as JSON"),
    ],
)
def test_real_labels_that_do_not_fit(tmp_path, content, message):
    with pytest.raises(UsageError, match=message):
        read_real_labels(written(tmp_path, "real.json", content), KEYS, CLASSES)


def test_imagenets_file_must_be_whole(tmp_path):
    path = written(tmp_path, "real.json", [[0]] * 49_999)
    with pytest.raises(UsageError, match=r"49,999 images, but ImageNet has 50,000 validation"):
        read_real_labels(path, ["ILSVRC2012_val_00000001"], CLASSES)


def test_a_missing_file_is_named(tmp_path):
    for read, name in ((read_real_labels, "real.json"), (read_labels, "l.csv"), (read_labels, "l.json")):
        with pytest.raises(UsageError, match=f"{name}: no such file"):
            read(tmp_path / name, KEYS, CLASSES)


THREE = {"a": {1}, "b": {2}, "c.d": {0}}


@pytest.mark.parametrize(
    ("name", "content", "labels", "strangers"),
    [
        ("l.csv", "key,label\na,dog\nb,2\nc.d,0\n", THREE, 0),
        ("l.csv", "other,label,key\nx,dog,a\ny,newt,b\nz,cat,c.d\n", THREE, 0),
        ("l.csv", "\ufeffkey,label\r\na,1\r\nb,newt\r\nc.d,cat\r\n", THREE, 0),
        ("l.csv", "key,label\na.JPEG,1\nb.jpg,newt\nc.d,cat\ne,\n", THREE, 0),
        ("l.json", {"a": "dog", "b": 2, "c.d": "cat"}, THREE, 0),
        ("l.json", {"a": ["dog"], "b.jpg": ["2"], "c.d": [0], "e": []}, THREE, 0),
        ("l.csv", "key,label\na,dog\nx,cat\na,cat\n", {"a": {0, 1}}, 1),
        ("l.json", {"a": ["cat", 1], "x": 0}, {"a": {0, 1}}, 1),
        ("l.csv", "key,label\na,7\n", {"a": {3}}, 0),  # a class id of digits comes before a number
    ],
)
def test_labels_by_key(tmp_path, name, content, labels, strangers):
    found = read_labels(written(tmp_path, name, content), KEYS, CLASSES)
    assert found.labels == labels
    assert (found.unlabeled, found.strangers) == (len(KEYS) - len(labels), strangers)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", "", r"must end in \.csv or \.json"),
        ("l.csv", "", "no column 'key'"),
        ("l.csv", "key,class\na,1\n", "no column 'label'"),
        ("l.csv", "key,label\na\n", "line 2 has fewer columns"),
        ("l.csv", 'key,label\na,"1\n', "is not CSV"),
        ("l.csv", "key,label\na,fish\n", r"a has the label 'fish'.*such as 'cat'.*0 to 3"),
        ("l.csv", "key,label\na,4\n", "label '4'"),
        ("l.json", {"a": -1}, "label -1"),
        ("l.json", {"a": 1.5}, "not an object of key and label"),
        ("l.json", [["a", 1]], "not an object"),
        ("l.csv", "key,label\nx,1\ny,2\n", r"none of the split's 4 images.*such as 'x'.*like 'a'"),
        ("l.csv", "key,label\n", "none of the split's 4 images"),
        ("l.csv", b"key,label\n\xff,1\n", "not UTF-8"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, name, content, message):
    with pytest.raises(UsageError, match=message):
        read_labels(written(tmp_path, name, content), KEYS, CLASSES)


def test_a_score_of_no_image_is_refused():
    labels = LabelSet("l.csv", {}, 1)
    with pytest.raises(UsageError, match="none of the 1 images"):
        score_labels(predictions(["a"], [[0, 1]]), labels)
