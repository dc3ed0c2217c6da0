"""Files of predictions, read back by `read_predictions`, the standard library and pyarrow."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from pyarrow import parquet

from pipeline.dataset.manifest import ClassInfo
from pipeline.errors import RunError, UsageError
from trainer.evaluation.predictions import Predictions, read_predictions, write_predictions

CLASSES = [
    ClassInfo(f"n{number:08d}", name)
    for number, name in enumerate(["tench, Tinca tinca", 'a "quoted" one', "Straße", "plain", "=1+1", "x"])
]


def drawn(count: int, kept: int = 5, unknown: bool = True) -> Predictions:
    rng = np.random.default_rng(count)
    labels = rng.integers(-1 if unknown else 0, len(CLASSES), count)
    classes = np.stack([rng.permutation(len(CLASSES))[:kept] for _ in range(count)])
    probabilities = -np.sort(-rng.random((count, kept)).astype(np.float32), axis=1)
    return Predictions(tuple(f"{number:04d}" for number in range(count)), labels, classes, probabilities)


def same(one: Predictions, other: Predictions) -> bool:
    assert one.labels.dtype == other.labels.dtype == np.int64
    assert one.classes.dtype == other.classes.dtype == np.int64
    assert one.probabilities.dtype == other.probabilities.dtype == np.float32
    return one.keys == other.keys and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("labels", "classes", "probabilities")
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@settings(max_examples=20)
@given(count=st.integers(1, 40), kept=st.integers(1, 5))
def test_what_is_written_is_read_back_to_the_bit(tmp_path_factory, suffix, count, kept):
    file = tmp_path_factory.mktemp("p") / f"p{suffix}"
    predictions = drawn(count, kept)
    write_predictions(file, predictions, CLASSES)
    assert same(read_predictions(file), predictions)


def test_any_reader_finds_names_and_probabilities(tmp_path):
    predictions = drawn(30)
    assert (predictions.labels < 0).any()
    for name in ("p.csv", "p.parquet"):
        write_predictions(tmp_path / name, predictions, CLASSES)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        texts = list(csv.DictReader(file))
    rows = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    columns = (predictions.labels, predictions.classes, predictions.probabilities)
    for row, text, key, label, classes, probabilities in zip(
        rows, texts, predictions.keys, *(column.tolist() for column in columns), strict=True
    ):
        info = CLASSES[label] if label >= 0 else ClassInfo(None, None)
        expected = {"key": key, "label": label if label >= 0 else None}
        expected |= {"label_id": info.id, "label_name": info.name}
        for k, (number, probability) in enumerate(zip(classes, probabilities, strict=True), 1):
            expected |= {f"class_{k}": number, f"id_{k}": CLASSES[number].id}
            expected |= {f"name_{k}": CLASSES[number].name, f"probability_{k}": probability}
            assert np.float32(text.pop(f"probability_{k}")) == np.float32(probability)
        assert row == expected
        assert text == {name: "" if expected[name] is None else str(expected[name]) for name in text}


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"p\.xlsx: .*\.csv or \.parquet"):
        write_predictions(tmp_path / "p.xlsx", drawn(2), CLASSES)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_one_line(tmp_path):
    with pytest.raises(RunError, match="cannot write"):
        write_predictions(tmp_path / "no" / "p.csv", drawn(2), CLASSES)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", None, "no such file"),
        ("p.csv", b"", "not predictions"),
        ("p.csv", b"key,score\na,1\n", "not predictions"),
        ("p.csv", b"key,label\na,1\n", "not predictions"),
        ("p.parquet", b"PAR1 and no more", "not predictions"),
    ],
)
def test_files_that_are_no_predictions(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_predictions(tmp_path / name)
