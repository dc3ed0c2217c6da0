"""Checkpoints of other programs; torchvision's layout is checked against its published list of layers."""

import argparse
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.reference import crops, measured, softmax, stored
from safetensors.torch import save_file

from pipeline import Dataset
from pipeline.dataset.manifest import ClassInfo, write_manifest
from pipeline.errors import UsageError
from trainer.distributed.env import DistEnv
from trainer.evaluation.evaluate import evaluate_checkpoints
from trainer.models.alexnet import build_model
from trainer.runs.checkpoint_file import read_file
from trainer.runs.class_match import imagenet_wnids
from trainer.runs.external_weights import ExternalWeights, Preprocessing, describe, is_external, load_external

# torchvision's documentation of its ImageNet weights, on a 0..1 scale.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = tuple(f"class {number}" for number in range(10))
# torchvision.models.alexnet as published: (name, outputs, inputs, side).
CONVOLUTIONS = (
    ("features.0", 64, 3, 11),
    ("features.3", 192, 64, 5),
    ("features.6", 384, 192, 3),
    ("features.8", 256, 384, 3),
    ("features.10", 256, 256, 3),
)
LINEAR = (("classifier.1", 4096, 256 * 6 * 6), ("classifier.4", 4096, 4096))


@pytest.fixture
def published() -> dict[str, torch.Tensor]:
    """Random weights in torchvision's layout, of ten classes; scaled so that logits are of order 1."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: (out, inputs, side, side) for name, out, inputs, side in CONVOLUTIONS}
    shapes |= {name: (out, inputs) for name, out, inputs in (*LINEAR, ("classifier.6", 10, 4096))}
    state = {}
    for name, shape in shapes.items():
        fan = torch.Size(shape[1:]).numel()
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    return state


def reference(state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """torchvision's `alexnet` in functional form, float64, from pixels 0..255 to logits."""
    x = (pixels.double() / 255 - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(STD).double().view(
        3, 1, 1
    )
    w = {name: value.double() for name, value in state.items()}

    def conv(x, name, **how):
        return F.relu(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **how))

    x = F.max_pool2d(conv(x, "features.0", stride=4, padding=2), 3, 2)
    x = F.max_pool2d(conv(x, "features.3", padding=2), 3, 2)
    x = conv(x, "features.6", padding=1)
    x = conv(x, "features.8", padding=1)
    x = F.max_pool2d(conv(x, "features.10", padding=1), 3, 2)
    x = F.adaptive_avg_pool2d(x, (6, 6)).flatten(1)
    for name, *_ in LINEAR:
        x = F.relu(F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"]))
    return F.linear(x, w["classifier.6.weight"], w["classifier.6.bias"])


def torchvision() -> ExternalWeights:
    found = describe("alexnet_owt", "torchvision")
    assert found is not None
    return found


def load(path, external, classes=CLASSES):
    return load_external(read_file(path), path, external, classes)


def test_torchvisions_layout_gives_torchvisions_logits(published, tmp_path):
    torch.save(published, tmp_path / "alexnet-owt.pth")
    model, notes = load(tmp_path / "alexnet-owt.pth", torchvision())
    pixels = torch.randint(0, 256, (4, 3, 224, 224), generator=torch.Generator().manual_seed(1)).float()
    expected = reference(published, pixels)
    with torch.inference_mode():
        got = model.eval().classify(pixels)
    assert expected.std() > 0.1
    # The order of sums depends on the processor; float32's error grows with the largest logit.
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert notes == [
        f"{tmp_path / 'alexnet-owt.pth'}: its 10 outputs are assumed to be the data's 10 classes, in order"
    ]
    assert (model.spec.size, model.spec.crop) == (256, 224)


def save_reference_script(state, path):
    """Write a file as torchvision's training script does, with the command line's options."""
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, path)


SAVERS = {
    "plain.pth": torch.save,
    "half.pth": lambda state, path: torch.save({k: v.half() for k, v in state.items()}, path),
    "old.pth": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "reference.pth": save_reference_script,
    "plain.safetensors": lambda state, path: save_file(state, path, {"format": "pt"}),
}


@pytest.mark.parametrize("name", SAVERS)
def test_weights_are_found_however_they_were_saved(tmp_path, name):
    torch.manual_seed(0)
    state = build_model("alexnet_bn", 10, 0.125).state_dict()
    path = tmp_path / name
    SAVERS[name](state, path)
    assert is_external(read_file(path))
    model, notes = load(path, ExternalWeights("alexnet_bn", Preprocessing((1, 2, 3), (4, 5, 6))))
    assert model.spec.width == 0.125  # inferred from the kernels of the first layer
    for key, value in model.model.state_dict().items():
        assert torch.equal(value, state[key].half().to(value.dtype) if name == "half.pth" else state[key])
    assert len(notes) == 1


def test_weights_of_another_shape_are_named(tmp_path):
    state = build_model("alexnet", 10, 0.125).state_dict()
    torch.save(state | {"conv2.bias": torch.zeros(7)}, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"1 key of another shape: conv2\.bias 7 for 32;"):
        load(tmp_path / "weights.pth", ExternalWeights("alexnet", Preprocessing((0,) * 3, (1,) * 3)))


def test_our_own_checkpoints_are_not_external(tiny_checkpoint):
    assert not is_external(read_file(tiny_checkpoint))


@pytest.fixture
def small():
    """An eighth of torchvision's network."""
    torch.manual_seed(0)
    return build_model("alexnet_owt", 10, 0.125).state_dict()


def test_missing_and_unexpected_keys_are_reported_and_capped(small, tmp_path):
    path = tmp_path / "weights.pth"
    few = {name: value for name, value in small.items() if "classifier" not in name}
    torch.save(few | {"head.weight": torch.zeros(2)}, path)
    with pytest.raises(UsageError) as error:
        load(path, torchvision())
    assert "\n" not in str(error.value)
    assert (
        "6 keys missing: classifier.1.weight, classifier.1.bias, classifier.4.weight, classifier.4.bias, "
        "classifier.6.weight and 1 more; 1 key unexpected: head.weight"
    ) in str(error.value)


def test_unexpected_keys_alone_are_a_note(small, tmp_path):
    path = tmp_path / "weights.pth"
    extra = {f"head.{number}": torch.zeros(1) for number in range(7)}
    torch.save(small | extra, path)
    _, notes = load(path, torchvision())
    assert notes[1:] == [
        f"{path}: 7 keys ignored, not in alexnet_owt: head.0, head.1, head.2, head.3, head.4 and 2 more"
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "lr": 0.1}, r"holds no state dict \(its keys: epoch, lr\)"),
        ([1, 2], "holds no state dict;"),
        (torch.zeros(3), "holds no state dict;"),
    ],
)
def test_files_without_a_state_dict(tmp_path, content, words):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=words):
        load(tmp_path / "weights.pth", torchvision())


def test_another_number_of_classes_or_no_description(small, tmp_path):
    torch.save(small, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match="has 10 outputs, but the data has 4 classes"):
        load(tmp_path / "weights.pth", torchvision(), CLASSES[:4])
    with pytest.raises(UsageError, match="--arch alexnet_owt --preprocessing torchvision"):
        load(tmp_path / "weights.pth", None)


def test_preprocessing_from_a_file_or_none(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("mean = [127.5, 127.5, 127.5]\nstd = [127.5, 127.5, 127.5]\ncrop = 192\n")
    found = describe("alexnet", str(path))
    assert found == ExternalWeights("alexnet", Preprocessing((127.5,) * 3, (127.5,) * 3, 256, 192))
    assert describe(None, None) is None


@pytest.mark.parametrize(
    ("arch", "preprocessing", "words"),
    [
        ("alexnet", None, "--arch and --preprocessing go together"),
        (None, "torchvision", "--arch and --preprocessing go together"),
        ("vgg", "torchvision", "arch is 'vgg'; did you mean"),
        ("alexnet", "timm", "--preprocessing timm: unknown; did you mean 'torchvision'"),
        ("alexnet", "no.toml", "no.toml: cannot be read"),
        ("alexnet", "mean = [1, 2]", "it needs mean and std"),
        ("alexnet", "mean = [1, 2, 3]", "missing required field `std`"),
        ("alexnet", "mean = [1, 2, 3]\nstd = [1, 0, 1]", "not above 0"),
        ("alexnet", "mean = [1, 2, 3]\nstd = [1, 1, 1]\ncrop = 300", "crop is 300"),
        ("alexnet", "mean = [1, 2, 3]\nstd = [1, 1, 1]\nscale = 1", "unknown key 'scale'"),
        ("alexnet", "mean = ", "it needs mean and std"),
    ],
)
def test_incomplete_descriptions_are_refused(tmp_path, arch, preprocessing, words):
    if preprocessing and "=" in preprocessing:
        path = tmp_path / "mine.toml"
        path.write_text(preprocessing)
        preprocessing = str(path)
    with pytest.raises(UsageError, match=words):
        describe(arch, preprocessing)


def evaluated(file, dataset, external):
    return evaluate_checkpoints(DistEnv(), [file], dataset.root, "val", "center", 8, external=external)


def test_an_external_checkpoint_is_evaluated_with_the_named_preprocessing(small, tiny_dataset, tmp_path):
    """End to end on 72 px images, against a reference network on pixels that Pillow decoded."""
    small["classifier.6.weight"] *= 40
    torch.save(small, tmp_path / "weights.pth")
    how = Preprocessing(tuple(255 * m for m in MEAN), tuple(255 * s for s in STD), 72, 64)
    external = ExternalWeights("alexnet_owt", how)
    got = evaluated(tmp_path / "weights.pth", tiny_dataset, external)
    samples = sorted(stored(tiny_dataset), key=lambda sample: sample.key)
    pixels = np.stack([crops(sample.pixels, 64, "center")[0] for sample in samples])
    expected = softmax(reference(small, torch.from_numpy(pixels)).numpy())
    labels = np.array([sample.label for sample in samples])
    top1, top5, loss = measured(expected, labels)
    assert (got.metrics.top1, got.metrics.top5) == (top1, top5)
    assert got.metrics.loss == pytest.approx(loss, rel=1e-4)
    assert "10 outputs are assumed to be the data's 10 classes, in order" in got.notes[0]


def test_a_thousand_outputs_are_imagenets_on_data_of_some_of_its_classes(tiny_dataset, tmp_path):
    """As torchvision's network on ImageNet-R: the softmax is over the logits of the data's WNIDs alone."""
    torch.manual_seed(0)
    state = build_model("alexnet_owt", 1000, 0.125).state_dict()
    state["classifier.6.weight"] *= 40
    torch.save(state, tmp_path / "weights.pth")
    outputs = np.random.default_rng(0).permutation(1000)[:10]
    classes = tuple(ClassInfo(imagenet_wnids()[output], f"class {output}") for output in outputs)
    shutil.copytree(tiny_dataset.root, tmp_path / "data")
    write_manifest(tmp_path / "data", replace(tiny_dataset.manifest, classes=classes))
    dataset = Dataset.open(tmp_path / "data")
    how = Preprocessing(tuple(255 * m for m in MEAN), tuple(255 * s for s in STD), 72, 64)
    got = evaluated(tmp_path / "weights.pth", dataset, ExternalWeights("alexnet_owt", how))
    samples = sorted(stored(dataset), key=lambda sample: sample.key)
    pixels = np.stack([crops(sample.pixels, 64, "center")[0] for sample in samples])
    expected = softmax(reference(state, torch.from_numpy(pixels)).numpy()[:, outputs])
    top1, top5, loss = measured(expected, np.array([sample.label for sample in samples]))
    assert (got.metrics.top1, got.metrics.top5) == (top1, top5)
    assert got.metrics.loss == pytest.approx(loss, rel=1e-4)
    assert (got.shared.networks, got.shared.by, got.shared.images_left_out) == ((1000,), ("id",), 0)
    assert "its 1,000 outputs are assumed to be ImageNet's 1,000 classes, in order" in got.notes[0]


def test_a_description_is_refused_where_every_checkpoint_has_its_own(tiny_checkpoint, tiny_dataset):
    with pytest.raises(UsageError, match="has its own architecture and preprocessing"):
        evaluated(tiny_checkpoint, tiny_dataset, torchvision())


def test_images_of_another_size_than_the_preprocessings_are_refused(small, tiny_dataset, tmp_path):
    torch.save(small, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"shorter side of 256 px.*has 72 px"):
        evaluated(tmp_path / "weights.pth", tiny_dataset, torchvision())
