"""The four networks against published parameter counts, shapes and names, and functional references.

The references are written with torch's functional interface from the paper, the released source and
torchvision's layout; they share nothing with `trainer.models` but the weights.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline import EvalView, Loader
from pipeline.errors import UsageError
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


@pytest.mark.parametrize("arch", ["alexnet", "alexnet_source"])
def test_feature_maps_shrink_from_55_to_6(arch):
    model = without_memory(arch)
    sides = {}

    def note(name):
        def hook(_module, _inputs, output):
            sides[name] = tuple(output.shape[1:])

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_children()]
    with torch.inference_mode():
        assert model.eval()(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 1000)
    assert len(hooks) == len(sides)
    assert sides["conv1"] == (96, 55, 55)
    assert sides["pool1"] == (96, 27, 27)
    assert sides["conv2"] == (256, 27, 27)
    assert sides["pool2"] == (256, 13, 13)
    assert sides["conv3"] == sides["conv4"] == (384, 13, 13)
    assert sides["conv5"] == (256, 13, 13)
    assert sides["pool5"] == (256, 6, 6)
    assert sides["flatten"] == (9216,)


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
        weight, n = module.weight.detach(), module.weight.numel()
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


def owt_reference(x, w):
    """torchvision's alexnet in inference (dropout is the identity)."""

    def conv(x, at, **how):
        return F.relu(F.conv2d(x, w[f"features.{at}.weight"], w[f"features.{at}.bias"], **how))

    def linear(x, at):
        return F.linear(x, w[f"classifier.{at}.weight"], w[f"classifier.{at}.bias"])

    x = F.max_pool2d(conv(x, 0, stride=4, padding=2), 3, 2)
    x = F.max_pool2d(conv(x, 3, padding=2), 3, 2)
    x = conv(conv(conv(x, 6, padding=1), 8, padding=1), 10, padding=1)
    x = F.adaptive_avg_pool2d(F.max_pool2d(x, 3, 2), 6).flatten(1)
    return linear(F.relu(linear(F.relu(linear(x, 1)), 4)), 6)


def alexnet_reference(x, w):
    """The paper's text, sections 3.3 to 4.2, in inference (outputs of fc6 and fc7 times one half)."""

    def conv(x, at, **how):
        return F.relu(F.conv2d(x, w[f"conv{at}.weight"], w[f"conv{at}.bias"], **how))

    def lrn(x):
        return F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2)

    def linear(x, at):
        return F.linear(x, w[f"fc{at}.weight"], w[f"fc{at}.bias"])

    x = F.max_pool2d(lrn(conv(x, 1, stride=4, padding=2)), 3, 2)
    x = F.max_pool2d(lrn(conv(x, 2, padding=2, groups=2)), 3, 2)
    x = conv(conv(conv(x, 3, padding=1), 4, padding=1, groups=2), 5, padding=1, groups=2)
    x = F.max_pool2d(x, 3, 2).flatten(1)
    return linear(F.relu(linear(F.relu(linear(x, 6)) / 2, 7)) / 2, 8)


def source_reference(x, w):
    """The released source's network: conv1 padded right and below, LRN and pooling before its ReLU."""

    def conv(x, at, **how):
        return F.conv2d(x, w[f"conv{at}.weight"], w[f"conv{at}.bias"], **how)

    def lrn(x):
        halves = [F.local_response_norm(half, 5, alpha=1e-4, beta=0.75, k=2) for half in x.chunk(2, dim=1)]
        return torch.cat(halves, dim=1)

    def linear(x, at):
        return F.linear(x, w[f"fc{at}.weight"], w[f"fc{at}.bias"])

    x = conv(F.pad(x, (0, 3, 0, 3)), 1, stride=4)
    x = F.relu(F.max_pool2d(lrn(x), 3, 2))
    x = lrn(F.relu(conv(x, 2, padding=2, groups=2)))
    x = x / (1 + 1e-3 * F.avg_pool2d(x * x, 5, 1, 2)) ** 0.75
    x = F.relu(conv(F.max_pool2d(x, 3, 2), 3, padding=1))
    x = F.relu(conv(x, 4, padding=1, groups=2))
    x = F.max_pool2d(F.relu(conv(x, 5, padding=1, groups=2)), 3, 2).flatten(1)
    return linear(F.relu(linear(F.relu(linear(x, 6)) / 2, 7)) / 2, 8)


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
@pytest.mark.parametrize("crop", [64, 65, 66, 67, 100, 227])
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
def test_class_count_is_that_of_the_logits(arch):
    with torch.device("meta"):
        models = [build_model(arch, classes) for classes in (2, 1000)]
    assert count(models[1]) - count(models[0]) == 998 * (4096 + 1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_parameter_gets_a_gradient(arch):
    torch.manual_seed(0)
    model = build_model(arch, 5, 0.125, 64)
    F.cross_entropy(model(60 * torch.randn(8, 3, 64, 64)), torch.arange(8) % 5).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.any(parameter.grad != 0), name


def overfit(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int) -> tuple[float, float]:
    """Train on one batch by the paper's rule; return loss and accuracy in inference mode."""
    optimizer = PaperSGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        logits = model.eval()(images)
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["alexnet", "alexnet_source"])
def test_a_narrow_net_learns_from_our_init_but_not_from_the_papers(tiny_dataset, arch):
    with Loader(tiny_dataset, "train", EvalView("center", 64), 40) as loader:
        batch = next(iter(loader))
    images = batch.images - torch.tensor(tiny_dataset.statistics.mean).view(3, 1, 1)
    torch.manual_seed(0)
    ours = build_model(arch, 10, 0.25, 64)
    plain = build_model(arch, 10, 0.25, 64)
    for module in plain.children():
        if hasattr(module, "weight"):
            nn.init.normal_(module.weight, std=0.01)
    with torch.no_grad():  # ours starts near the loss of a random guess
        assert F.cross_entropy(ours.train()(images), batch.labels).item() < 3
    loss, accuracy = overfit(ours, images, batch.labels, 240)
    assert loss < 0.5
    assert accuracy > 0.9
    loss, accuracy = overfit(plain, images, batch.labels, 240)
    assert loss > 1.8
    assert accuracy < 0.4


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("alexnet9", 10), "alexnet9.*alexnet_source"),
        (("alexnet", 1), "1 classes.*two"),
        (("alexnet", 10, 1.0, 63), "crop 63.*64"),
        (("alexnet", 10, 0.0), "width 0"),
        (("alexnet", 10, 9.0), "width 9"),
        (("alexnet", 10, float("nan")), "width nan"),
    ],
)
def test_impossible_nets_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        build_model(*arguments)
