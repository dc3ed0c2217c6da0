"""Captured outputs of layers, against the layers applied one by one."""

import numpy as np
import pytest
import torch

from pipeline import UsageError
from trainer.inference.examples import stored_images
from trainer.inference.features import captured, feature_layer, features, map_layers, split_features
from trainer.inference.preprocess import as_batch
from trainer.models.alexnet import build_model


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1)).float()


@pytest.mark.parametrize("arch", ["alexnet", "alexnet_bn"])
def test_outputs_are_copied_before_the_next_layer_works_in_place(arch, pixels):
    model = build_model(arch, 4, 0.05, 64).eval()
    names = [name for name, _ in model.named_children()]
    with captured(model, names) as outputs, torch.inference_mode():
        model(pixels)
    x = pixels
    with torch.inference_mode():
        for name, layer in model.named_children():
            x = layer(x.clone())
            torch.testing.assert_close(outputs[name], x, rtol=1e-5, atol=1e-5)
    assert (outputs["conv1"] < 0).any()  # before the in-place ReLU


def test_nothing_is_kept_after_the_block(tiny_classifier, pixels):
    with captured(tiny_classifier.model, ["conv1"]) as outputs:
        tiny_classifier.eval().classify(pixels)
    kept = outputs.pop("conv1")
    tiny_classifier.classify(pixels)
    assert not outputs
    assert kept.shape[:2] == (2, 4)


def test_an_unknown_layer_is_named_with_those_that_there_are(tiny_classifier):
    with pytest.raises(UsageError, match=r"no layer is named 'conv9'; there are conv1, bn1, relu1"):
        captured(tiny_classifier.model, ["conv9"]).__enter__()


@pytest.mark.parametrize(
    ("arch", "hidden"),
    [("alexnet", "relu7"), ("alexnet_bn", "relu7"), ("alexnet_owt", "classifier.5")],
)
def test_features_are_the_last_hidden_layers(arch, hidden):
    model = build_model(arch, 4, 0.05, 64)
    assert feature_layer(model) == hidden
    names = [name for name, _ in model.named_modules()]
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert names.index(linear[-2]) < names.index(hidden) < names.index(linear[-1])


def test_features_times_the_last_layer_are_the_logits(tiny_classifier, pixels):
    tiny_classifier.eval()
    found = features(tiny_classifier, pixels)
    assert found.dtype == np.float32
    assert found.min() == 0  # after the ReLU
    last = tiny_classifier.model.fc8
    logits = found @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    with torch.inference_mode():
        np.testing.assert_allclose(logits, tiny_classifier.classify(pixels).numpy(), rtol=1e-4, atol=1e-5)


def test_layers_with_maps_end_before_the_units(tiny_classifier):
    names = map_layers(tiny_classifier.eval())
    assert names[0] == "conv1"
    assert names[-1] == "pool5"
    assert "fc6" not in names


def test_a_whole_splits_features_are_its_images_in_order(tiny_classifier, tiny_dataset):
    tiny_classifier.eval()
    seen = []
    chunks = list(
        split_features(tiny_classifier, tiny_dataset, "val", 8, on_progress=lambda *d: seen.append(d))
    )
    assert [len(chunk) for chunk in chunks] == [8, 8, 8, 6]
    assert seen[-1] == (30, 30)
    stored = stored_images(tiny_dataset, "val", range(30), tiny_classifier.spec)
    alone = features(tiny_classifier, as_batch([image.crop for image in stored]))
    # Other batch sizes sum in another order: the error is relative to the largest terms, not to the feature.
    atol = 1e-5 * alone.max()
    np.testing.assert_allclose(np.concatenate(chunks), alone, rtol=1e-4, atol=atol)
