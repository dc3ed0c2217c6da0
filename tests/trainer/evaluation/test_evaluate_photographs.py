"""Ten-crop evaluation of photographs, against Pillow and NumPy, which share only the layers with it."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.reference import Sample, measured, probabilities_of, stored
from PIL import Image

from cli.eval import main as evaluate
from cli.prep import main as prep
from cli.train import main as train
from pipeline import Dataset
from trainer import load_model, read_predictions


def invoke(command, *arguments):
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output


def squares_of(source, size):
    """Samples, sorted by key, of the photographs' center squares, scaled by Pillow and not encoded again."""
    squares = []
    for path in sorted(source.glob("*/*.jpg"), key=lambda path: path.stem):
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        x, y = ((length - side) // 2 for length in image.size)
        square = image.resize((size, size), Image.Resampling.BOX, (x, y, x + side, y + side))
        squares.append(Sample(path.stem, -1, np.asarray(square)))
    return squares


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_crops_are_those_of_pillow_and_numpy(shared_data, tmp_path):
    """Accuracy must agree within 0.2 points on 341 photographs, less than one photograph."""
    invoke(prep, "shard", shared_data / "clothing", tmp_path / "s", "--size", 144)
    settings = ("--recipe", "small", "--set", "epochs=3", "--set", "crop=128", "--set", "width=0.1")
    invoke(train, tmp_path / "s", *settings, "--cpus", 1, "--out", tmp_path / "r")
    files = ("--json", tmp_path / "r.json", "--predictions", tmp_path / "p.parquet")
    invoke(evaluate, tmp_path / "r", "--data", tmp_path / "s", "--cpus", 1, "--views", "ten-crop", *files)
    metrics = json.loads((tmp_path / "r.json").read_text())["metrics"]
    found = read_predictions(tmp_path / "p.parquet")

    model = load_model(tmp_path / "r").classifier
    samples = sorted(stored(Dataset.open(tmp_path / "s")), key=lambda sample: sample.key)
    assert [sample.key for sample in samples] == list(found.keys)
    expected = probabilities_of(model, samples, "ten-crop")
    top1, top5, _ = measured(expected, np.array([sample.label for sample in samples]))
    assert len({*expected.argmax(axis=1)}) >= 4  # predictions differ between images
    assert abs(metrics["top1"] - top1) <= 0.002
    assert abs(metrics["top5"] - top5) <= 0.002
    np.testing.assert_allclose(
        found.probabilities, np.take_along_axis(expected, found.classes, axis=1), atol=1e-4
    )

    # Read from the photographs instead of the shards, only the scaling filter and the second JPEG differ.
    squares = squares_of(shared_data / "clothing" / "validation", model.spec.size)
    assert [square.key for square in squares] == list(found.keys)
    direct = probabilities_of(model, squares, "ten-crop")
    assert (direct.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.97
    assert np.abs(direct - expected).mean() < 0.01
