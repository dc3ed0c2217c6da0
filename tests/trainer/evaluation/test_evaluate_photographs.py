"""Ten-crop evaluation of photographs, against a reference that shares only the checkpoint with it."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from nvidia.dali import Pipeline
from PIL import Image

from cli.eval import main as evaluate
from cli.prep import main as prep
from cli.train import main as train
from pipeline import EvalView, Placement
from pipeline.dataset.manifest import ImageFormat
from pipeline.loader.dali import graph
from trainer import read_predictions


def invoke(command, *arguments):
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output


def decoders(node, found=()):
    """The set of decoder operators that an output of a DALI graph depends on."""
    if node.source is None:
        return set(found)
    operators = {node.source} if "decoders" in str(node.source.spec).partition("\n")[0] else set()
    for given in node.source.inputs:
        for each in given if isinstance(given, list) else [given]:
            operators |= decoders(each)
    return operators


@pytest.mark.parametrize("mode", ["square", "aspect", "original"])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_ten_crops_are_cut_from_one_decoded_image(device, mode):
    reader = graph.ReaderSettings(["a.tar"], ["a.idx"], 4)
    with Pipeline(batch_size=2, num_threads=1, device_id=None if device == "cpu" else 0):
        arguments = (ImageFormat(256, mode, 95), Placement(device=device), graph.OutputSettings())
        images = graph.build.__wrapped__(reader, EvalView("ten-crop"), *arguments)[0]
    assert len(decoders(images)) == 1


def ten_crops(pixels, side):
    """(H, W, 3) → (10, side, side, 3): corners and center, then their mirror images."""
    free = np.array(pixels.shape[:2]) - side
    corners = [(0, 0), (0, free[1]), (free[0], 0), tuple(free), tuple(free // 2)]
    cut = [pixels[y : y + side, x : x + side] for y, x in corners]
    return np.stack(cut + [crop[:, ::-1] for crop in cut])


def forward(w, x):
    """Forward pass of `alexnet_bn` in evaluation mode, from a dict of its weights."""

    def normalized(x, name):
        view = (1, -1) + (1,) * (x.ndim - 2)
        scale = w[f"{name}.weight"] / torch.sqrt(w[f"{name}.running_var"] + 1e-5)
        return (x - w[f"{name}.running_mean"].view(view)) * scale.view(view) + w[f"{name}.bias"].view(view)

    def conv(x, number, groups, **options):
        x = F.conv2d(x, w[f"conv{number}.weight"], groups=groups, **options)
        return F.relu(normalized(x, f"bn{number}"))

    x = F.max_pool2d(conv(x, 1, 1, stride=4, padding=2), 3, 2)
    x = F.max_pool2d(conv(x, 2, 2, padding=2), 3, 2)
    x = conv(conv(x, 3, 1, padding=1), 4, 2, padding=1)
    x = F.max_pool2d(conv(x, 5, 2, padding=1), 3, 2).flatten(1)
    for number in (6, 7):
        x = F.relu(normalized(F.linear(x, w[f"fc{number}.weight"]), f"bn{number}"))
    return F.linear(x, w["fc8.weight"], w["fc8.bias"])


def class_probabilities(content, pixels, side):
    """Mean softmax over the ten crops of an image, float64 (K,)."""
    weights = {name.removeprefix("model."): value for name, value in content["model"].items()}
    crops = ten_crops(pixels, side).astype(np.float32)
    prepared = (crops - np.float32(content["spec"]["mean"])) / np.float32(content["spec"]["std"])
    with torch.inference_mode():
        logits = forward(weights, torch.from_numpy(prepared).permute(0, 3, 1, 2)).double().numpy()
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (exponents / exponents.sum(axis=1, keepdims=True)).mean(axis=0)


def stored_images(folder):
    """Key → (label, pixels) of the validation shards, read by tarfile and Pillow."""
    members = {}
    for path in sorted((folder / "val").glob("*.tar")):
        with tarfile.open(path) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}
    return {
        name.removesuffix(".jpg"): (
            int(members[name.removesuffix("jpg") + "cls"]),
            np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
        )
        for name, data in members.items()
        if name.endswith(".jpg")
    }


def squares_of(source, size):
    """Stem → pixels of each photograph's center square, scaled by Pillow and not encoded again."""
    squares = {}
    for path in source.glob("*/*.jpg"):
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        x, y = ((length - side) // 2 for length in image.size)
        box = (x, y, x + side, y + side)
        squares[path.stem] = np.asarray(image.resize((size, size), Image.Resampling.BOX, box))
    return squares


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_crops_are_those_of_pillow_and_numpy(shared_data, tmp_path):
    """Accuracy must agree within 0.2 points on 341 photographs, less than one photograph."""
    invoke(prep, "shard", shared_data / "clothing", tmp_path / "s")
    settings = ("--recipe", "small", "--set", "epochs=3", "--cpus", 1, "--out", tmp_path / "r")
    invoke(train, tmp_path / "s", *settings)
    files = ("--json", tmp_path / "r.json", "--predictions", tmp_path / "p.parquet")
    model = tmp_path / "r" / "last.pt"
    invoke(evaluate, model, tmp_path / "s", "--cpus", 1, "--views", "ten-crop", *files)
    metrics = json.loads((tmp_path / "r.json").read_text())["metrics"]
    found = read_predictions(tmp_path / "p.parquet")

    content = torch.load(model, weights_only=True)
    side, size = content["spec"]["crop"], content["spec"]["size"]
    stored = stored_images(tmp_path / "s")
    assert sorted(stored) == list(found.keys)
    expected = np.array([class_probabilities(content, stored[key][1], side) for key in found.keys])
    labels = np.array([stored[key][0] for key in found.keys])
    order = np.argsort(-expected, axis=1, kind="stable")
    top1 = (order[:, 0] == labels).mean()
    top5 = (order[:, :5] == labels[:, None]).any(axis=1).mean()
    assert len({*order[:, 0]}) >= 4  # predictions differ between images
    assert abs(metrics["top1"] - top1) <= 0.002
    assert abs(metrics["top5"] - top5) <= 0.002
    np.testing.assert_allclose(
        found.probabilities, np.take_along_axis(expected, found.classes, axis=1), atol=1e-4
    )

    # Read from the photographs instead of the shards, only the scaling filter and the second JPEG differ.
    squares = squares_of(shared_data / "clothing" / "validation", size)
    direct = np.array([class_probabilities(content, squares[key], side) for key in found.keys])
    assert (direct.argmax(axis=1) == order[:, 0]).mean() > 0.97
    assert np.abs(direct - expected).mean() < 0.01
