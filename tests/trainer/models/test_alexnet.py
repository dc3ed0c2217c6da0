"""The four networks against published parameter counts, shapes and names, and functional references.

The references are written with torch's functional interface from the paper, the released source and
torchvision's layout; they share nothing with `trainer.models` but the weights.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline import EvalView, Loader
from trainer.models.alexnet import ARCHITECTURES, build_model, first_kernels, layer_names
from trainer.models.layers import PaperDropout
from trainer.optim.optimizers import PaperSGD

# torchvision.models.alexnet().state_dict(), as published with its weights.
TORCHVISION = {
    "features.0.weight": (64, 3, 11, 11),
    "features.0.bias": (64,),
    "features.3.weight": (192, 64, 5, 5),
    "features.3.bias": (192,),
    "features.6.weight": (384, 192, 3, 3),
    "features.6.bias": (384,),
    "features.8.weight": (256, 384, 3, 3),
    "features.8.bias": (256,),
    "features.10.weight": (256, 256, 3, 3),
    "features.10.bias": (256,),
    "classifier.1.weight": (4096, 9216),
    "classifier.1.bias": (4096,),
    "classifier.4.weight": (4096, 4096),
    "classifier.4.bias": (4096,),
    "classifier.6.weight": (1000, 4096),
    "classifier.6.bias": (1000,),
}
# The paper's section 3.5: kernels as (outputs, inputs, side, side), and the fully connected layers.
PAPER = {
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
    "fc6": (4096, 9216),
    "fc7": (4096, 4096),
    "fc8": (1000, 4096),
}
BIAS_ONE = {"conv2", "conv4", "conv5", "fc6", "fc7"}


def without_memory(arch: str) -> nn.Sequential:
    """Build the network at full size on the meta device, which has shapes only."""
    with torch.device("meta"):
        return build_model(arch, 1000)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [("alexnet", 60_965_224), ("alexnet_source", 60_965_224), ("alexnet_owt", 61_100_840)],
)
def test_parameter_counts_are_the_published(arch, parameters):
    assert count(without_memory(arch)) == parameters


MAPS = {
    "conv1": (96, 55, 55),
    "pool1": (96, 27, 27),
    "conv2": (256, 27, 27),
    "pool2": (256, 13, 13),
    "conv5": (256, 13, 13),
    "pool5": (256, 6, 6),
}


@pytest.mark.parametrize("arch", ["alexnet", "alexnet_source"])
def test_feature_maps_shrink_from_55_to_6(arch):
    x, shapes = torch.zeros(1, 3, 224, 224, device="meta"), {}
    for name, layer in without_memory(arch).eval().named_children():
        x = layer(x)
        shapes[name] = tuple(x.shape[1:])
    assert {name: shapes[name] for name in MAPS} == MAPS


@pytest.mark.parametrize("arch", ["alexnet", "alexnet_source"])
def test_weights_have_the_papers_shapes_and_groups(arch):
    model = without_memory(arch)
    assert {n: tuple(m.weight.shape) for n, m in model.named_children() if hasattr(m, "weight")} == PAPER
    groups = {name: m.groups for name, m in model.named_children() if isinstance(m, nn.Conv2d)}
    assert groups == {"conv1": 1, "conv2": 2, "conv3": 1, "conv4": 2, "conv5": 2}


@pytest.mark.parametrize("arch", ["alexnet", "alexnet_source"])
def test_initial_weights_and_biases_are_the_published(arch):
    torch.manual_seed(0)
    model = build_model(arch, 1000)
    wide = {"conv3", "conv4", "conv5"} if arch == "alexnet_source" else set()
    for name, module in model.named_children():
        if not hasattr(module, "weight"):
            continue
        weight = module.weight.detach().flatten()[: 10**6]
        n = len(weight)
        expected = 0.03 if name in wide else 0.01
        # Five standard errors of a normal sample's mean and deviation.
        assert weight.mean().item() == pytest.approx(0, abs=5 * expected / n**0.5), name
        assert weight.std().item() == pytest.approx(expected, rel=5 / (2 * n) ** 0.5), name
        kurtosis = ((weight / weight.std()) ** 4).mean().item()
        assert kurtosis == pytest.approx(3, abs=5 * (24 / n) ** 0.5), name
        assert torch.all(module.bias == (1.0 if name in BIAS_ONE else 0.0)), name


def test_initialization_draws_from_torchs_generator():
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(build_model("alexnet", 10, 0.1, 64).state_dict())
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    assert not torch.equal(models[0]["conv1.weight"], models[2]["conv1.weight"])


def test_owt_has_torchvisions_names_and_shapes():
    state = without_memory("alexnet_owt").state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == TORCHVISION
    assert list(state) == list(TORCHVISION)


def layer(x, w, name, **how):
    """One convolution (`how`: its stride, padding, groups) or fully connected layer with the weights `w`."""
    operation = F.linear if w[f"{name}.weight"].ndim == 2 else F.conv2d
    return operation(x, w[f"{name}.weight"], w[f"{name}.bias"], **how)


def owt_reference(x, w):
    """torchvision's alexnet in inference (dropout is the identity)."""
    x = F.max_pool2d(F.relu(layer(x, w, "features.0", stride=4, padding=2)), 3, 2)
    x = F.max_pool2d(F.relu(layer(x, w, "features.3", padding=2)), 3, 2)
    for at in (6, 8, 10):
        x = F.relu(layer(x, w, f"features.{at}", padding=1))
    x = F.adaptive_avg_pool2d(F.max_pool2d(x, 3, 2), 6).flatten(1)
    x = F.relu(layer(F.relu(layer(x, w, "classifier.1")), w, "classifier.4"))
    return layer(x, w, "classifier.6")


def from_conv3(x, w):
    """conv3 to fc8 in inference: outputs of fc6 and fc7 times one half."""
    x = F.relu(layer(x, w, "conv3", padding=1))
    x = F.relu(layer(x, w, "conv4", padding=1, groups=2))
    x = F.relu(layer(x, w, "conv5", padding=1, groups=2))
    x = F.relu(layer(F.max_pool2d(x, 3, 2).flatten(1), w, "fc6")) / 2
    return layer(F.relu(layer(x, w, "fc7")) / 2, w, "fc8")


def alexnet_reference(x, w):
    """The paper's text, sections 3.3 to 4.2."""

    def lrn(x):
        return F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2)

    x = F.max_pool2d(lrn(F.relu(layer(x, w, "conv1", stride=4, padding=2))), 3, 2)
    x = F.max_pool2d(lrn(F.relu(layer(x, w, "conv2", padding=2, groups=2))), 3, 2)
    return from_conv3(x, w)


def source_reference(x, w):
    """The released source's network: conv1 padded right and below, LRN and pooling before its ReLU."""

    def lrn(x):
        halves = [F.local_response_norm(half, 5, alpha=1e-4, beta=0.75, k=2) for half in x.chunk(2, dim=1)]
        return torch.cat(halves, dim=1)

    x = layer(F.pad(x, (0, 3, 0, 3)), w, "conv1", stride=4)
    x = F.relu(F.max_pool2d(lrn(x), 3, 2))
    x = lrn(F.relu(layer(x, w, "conv2", padding=2, groups=2)))
    x = x / (1 + 1e-3 * F.avg_pool2d(x * x, 5, 1, 2)) ** 0.75
    return from_conv3(F.max_pool2d(x, 3, 2), w)


@pytest.mark.parametrize(
    ("arch", "reference"),
    [
        ("alexnet", alexnet_reference),
        ("alexnet_source", source_reference),
        ("alexnet_owt", owt_reference),
    ],
)
@pytest.mark.parametrize("crop", [64, 224])
def test_logits_equal_a_functional_reference(arch, reference, crop):
    torch.manual_seed(0)
    model = build_model(arch, 7, 0.125, crop).double().eval()
    x = 60 * torch.randn(2, 3, crop, crop, dtype=torch.float64)
    with torch.inference_mode():
        expected = reference(x, dict(model.named_parameters()))
        assert expected.std() > 1e-3
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-12)


def test_bn_normalizes_every_hidden_layer_and_none_else():
    model = build_model("alexnet_bn", 10, 0.1, 64)
    assert [n for n, m in model.named_children() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)] == [
        f"bn{k}" for k in range(1, 8)
    ]
    biased = [
        n for n, m in model.named_children() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None
    ]
    assert biased == ["fc8"]  # a bias before batch normalization would change nothing


def test_only_the_papers_nets_use_its_dropout():
    kinds = {
        arch: {type(m) for m in build_model(arch, 10, 0.05, 64).modules() if "ropout" in type(m).__name__}
        for arch in ARCHITECTURES
    }
    assert kinds == {
        "alexnet": {PaperDropout},
        "alexnet_source": {PaperDropout},
        "alexnet_owt": {nn.Dropout},
        "alexnet_bn": {nn.Dropout},
    }


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("crop", [64, 67, 100])
def test_every_crop_from_the_smallest_gives_logits(arch, crop):
    model = build_model(arch, 3, 0.02, crop).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, crop, crop)).shape == (2, 3)


@pytest.mark.parametrize(
    ("width", "kernels"), [(0.25, (24, 64, 96, 96, 64)), (0.5, (48, 128, 192, 192, 128)), (1e-3, (2,) * 5)]
)
def test_width_scales_hidden_channels(width, kernels):
    model = build_model("alexnet", 10, width, 64)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert tuple(m.out_channels for m in convs) == kernels
    assert model.fc6.out_features == model.fc7.out_features == max(2, round(4096 * width / 2) * 2)
    assert model.fc8.out_features == 10


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_parameter_gets_a_gradient(arch):
    torch.manual_seed(0)
    model = build_model(arch, 5, 0.125, 64)
    F.cross_entropy(model(60 * torch.randn(8, 3, 64, 64)), torch.arange(8) % 5).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.any(parameter.grad != 0), name


@pytest.mark.slow
def test_a_narrow_net_learns_from_our_init(tiny_dataset):
    """With the paper's deviations, the loss would start and stay near that of a random guess, 2.3."""
    with Loader(tiny_dataset, "train", EvalView("center", 64), 40) as loader:
        batch = next(iter(loader))
    images = batch.images - torch.tensor(tiny_dataset.statistics.mean).view(3, 1, 1)
    torch.manual_seed(0)
    model = build_model("alexnet", 10, 0.25, 64)
    optimizer = PaperSGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(160):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), batch.labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 3
    assert losses[-1] < 1


def test_layer_names_are_the_modules_with_parameters():
    assert layer_names(build_model("alexnet", 10, 0.05, 64)) == list(PAPER)
    assert layer_names(build_model("alexnet_owt", 10, 0.05, 64)) == list(
        dict.fromkeys(key.rsplit(".", 1)[0] for key in TORCHVISION)
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_first_kernels_are_conv1s(arch):
    model = build_model(arch, 10, 0.25, 64)
    kernels = first_kernels(model)
    assert kernels.shape[1:] == (3, 11, 11)
    assert torch.equal(kernels, next(model.parameters()))
    assert not kernels.requires_grad
