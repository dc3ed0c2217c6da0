"""Exported files give the outputs of the network they were exported from, preprocessing included."""

import copy
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from pipeline import RunError, UsageError
from pipeline.dataset.manifest import ImageFormat
from trainer.export import TOLERANCE, export, onnx_difference
from trainer.inference.examples import UNKNOWN, NamedImage, predict
from trainer.inference.preprocess import crop_of_stored, crops_of_file
from trainer.models.classifier import Classifier, Spec
from trainer.runs import checkpoint
from trainer.runs.load_model import load_model

DOCS = Path(__file__).parents[2] / "docs" / "export.md"


def make(arch, width=0.1, mean_image=False, crop=64):
    torch.manual_seed(3)
    spec = Spec(
        arch=arch,
        width=width,
        crop=crop,
        classes=("n1", "n2", "n3", "n4"),
        size=72,
        mean=(0.0, 0.0, 0.0) if mean_image else (120.0, 110.0, 100.0),
        std=(60.0, 61.0, 62.0),
        mean_image=mean_image,
        names=("cat", "dog", "œuf", "a, b"),
    )
    classifier = Classifier(spec).eval()
    if classifier.mean_image is not None:
        classifier.mean_image.uniform_(0, 255)
    return classifier


def pixels(count, crop=64):
    return np.random.default_rng(count).uniform(0, 255, (count, 3, crop, crop)).astype(np.float32)


def outputs(classifier, x):
    with torch.inference_mode():
        return classifier.eval().classify(torch.from_numpy(x)).softmax(dim=1)


@pytest.mark.parametrize("mean_image", [False, True])
def test_safetensors_load_as_a_checkpoint_does(tmp_path, mean_image):
    model, path = make("alexnet_bn", mean_image=mean_image), tmp_path / "model.safetensors"
    assert "loads wherever a checkpoint does" in export(model, path)[0]
    back = load_model(path).classifier
    assert back.spec == model.spec
    assert torch.equal(outputs(back, pixels(2)), outputs(model, pixels(2)))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network whose outputs differ between images, and its ONNX file."""
    model, path = make("alexnet_bn"), tmp_path_factory.mktemp("onnx") / "alexnet.onnx"
    with torch.no_grad():
        model.model.fc8.weight *= 2 / model.classify(torch.from_numpy(pixels(8))).std()
    export(model, path)
    return model, path


@pytest.fixture
def exporter(exported, monkeypatch):
    """Let torch's exporter return the graph of `exported`, so that it need not run again."""
    program = SimpleNamespace(model_proto=onnx.load(exported[1]))
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: program)
    return exported[0]


@pytest.mark.parametrize(
    ("arch", "mean_image", "size"),
    [
        ("alexnet_source", True, {}),
        pytest.param("alexnet", False, {"width": 1, "crop": 224}, marks=pytest.mark.slow),
    ],
)
def test_onnx_gives_torchs_outputs_for_any_batch(tmp_path, arch, mean_image, size):
    model, path = make(arch, mean_image=mean_image, **size), tmp_path / "model.onnx"
    notes = export(model, path)
    assert any("ONNX Runtime agrees within" in note for note in notes)
    for count in (1, 3, 7):
        assert onnx_difference(path, model, pixels(count, model.spec.crop)) <= TOLERANCE
    facts = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    assert json.loads(facts["classes"]) == ["n1", "n2", "n3", "n4"]
    assert json.loads(facts["names"]) == ["cat", "dog", "œuf", "a, b"]
    assert (facts["size"], facts["crop"]) == ("72", str(model.spec.crop))


def test_wrong_logits_differ_even_where_probabilities_hardly_do(exported):
    model = copy.deepcopy(exported[0])
    assert onnx_difference(exported[1], model) <= TOLERANCE
    with torch.no_grad():
        model.model.fc8.bias += 0.1  # the same for every class, which leaves probabilities unchanged
        scale = max(1.0, float(model.classify(torch.from_numpy(pixels(3))).abs().max()))
    assert 0.01 < onnx_difference(exported[1], model) * scale < 0.2


def test_torchvisions_layout_with_its_transforms_gives_the_same_logits(tmp_path):
    """torchvision's pipeline in torch: pixels to 0..1, then Normalize with the exported mean and std."""
    model = make("alexnet_owt", width=1, crop=224)
    (note,) = export(model, tmp_path / "model.pth")
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    assert list(state)[:2] == ["features.0.weight", "features.0.bias"]
    assert {name: tuple(t.shape) for name, t in state.items()}["classifier.6.weight"] == (4, 4096)
    facts = json.loads((tmp_path / "model.preprocessing.json").read_text())
    assert "model.preprocessing.json" in note
    mean, std = (
        torch.tensor(facts["transforms"][f"normalize_{name}"]).view(3, 1, 1) for name in ("mean", "std")
    )
    x = pixels(2, 224)
    with torch.inference_mode():
        theirs = model.model((torch.from_numpy(x) / 255 - mean) / std)
        ours = model.classify(torch.from_numpy(x))
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    assert facts["classes"] == ["n1", "n2", "n3", "n4"]


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("alexnet_bn", {}, "alexnet_owt at width 1, this network is alexnet_bn at width 0.1"),
        ("alexnet_owt", {}, "this network is alexnet_owt at width 0.1"),
        ("alexnet_owt", {"width": 1, "mean_image": True}, "subtracts a mean image"),
    ],
)
def test_other_networks_do_not_fit_torchvision(tmp_path, arch, changes, message):
    model = make(arch)
    model.spec = replace(model.spec, **changes)
    with pytest.raises(UsageError, match=re.escape(message)):
        export(model, tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_names_the_known(tmp_path):
    with pytest.raises(UsageError, match=r"choose from '\.safetensors', '\.onnx', '\.pth'"):
        export(make("alexnet_bn"), tmp_path / "model.h5")


def test_onnx_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"pip install 'alexnet-toolkit\[export\]'"):
        export(make("alexnet_bn"), tmp_path / "model.onnx")


def test_a_network_too_large_for_one_onnx_file_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.export._LARGEST_ONNX", 1000)
    with pytest.raises(UsageError, match=r"holds 2 GiB at most.*export it as \.safetensors"):
        export(make("alexnet_bn"), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime_the_file_is_written_and_reported_as_untested(tmp_path, monkeypatch, exporter):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    notes = export(exporter, tmp_path / "model.onnx")
    assert any("not tested: onnxruntime is missing" in note for note in notes)
    assert (tmp_path / "model.onnx").exists()


def test_a_file_with_other_outputs_is_not_written(tmp_path, exporter):
    other = copy.deepcopy(exporter)
    with torch.no_grad():
        other.model.fc8.weight *= 2
    with pytest.raises(RunError, match="not written"):
        export(other, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_class_names_still_fits_its_run(tmp_path):
    model = make("alexnet_bn")
    checkpoint.save(tmp_path / "old.pt", model)
    content = checkpoint.load(tmp_path / "old.pt")
    del content["spec"]["names"]  # older checkpoints have no names
    assert checkpoint.spec_of(content, tmp_path / "old.pt").names == ()
    checkpoint.refuse_other_spec(content, model.spec, tmp_path / "old.pt")


@pytest.mark.parametrize(("prepared", "tolerance"), [(True, 1e-3), (False, 0.02)])
def test_the_documented_example_classifies_as_the_network_does(
    tmp_path, monkeypatch, shared_data, capsys, exported, prepared, tolerance
):
    """The tolerance is wider for a photograph: Pillow decodes and scales it slightly differently."""
    example = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    model, file = exported
    shutil.copyfile(file, tmp_path / "alexnet.onnx")
    source = sorted((shared_data / "clothing" / "validation").rglob("*.jpg"))[0]
    if prepared:
        Image.open(source).resize((72, 72)).save(tmp_path / "cat.jpg", "PNG")
    else:
        (tmp_path / "cat.jpg").write_bytes(source.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(example, names)
    if prepared:
        crop = crop_of_stored(
            (tmp_path / "cat.jpg").read_bytes(), model.spec.crop, ImageFormat(72, "square", 95)
        )
    else:
        crop = crops_of_file(tmp_path / "cat.jpg", model.spec)
    (prediction,) = predict(model, [NamedImage("cat", crop, UNKNOWN)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(model.spec.names[prediction.classes[0]])
    got = [float(line.rsplit(" ", 1)[1]) for line in printed]
    assert got == pytest.approx(list(prediction.probabilities[: len(got)]), abs=tolerance)
    assert max(got) > 0.3
