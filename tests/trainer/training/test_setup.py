"""Compiling a classifier: one graph, and the same gradients as without."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from trainer.models.alexnet import ARCHITECTURES
from trainer.models.classifier import Classifier, Spec
from trainer.training.setup import compile_in_place


def classifier_of(arch: str) -> Classifier:
    torch.manual_seed(0)
    spec = Spec(arch, 0.1, 64, ("a", "b", "c"), 72, (0, 0, 0), (60, 60, 60), mean_image=True)
    classifier = Classifier(spec)
    classifier.mean_image.uniform_(0, 255)
    return classifier


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_network_and_preprocessing_are_one_graph(arch, monkeypatch):
    """torch.compile would split a bare torch.nn.Sequential into several graphs."""
    classifier, counter = classifier_of(arch), CompileCounter()
    compile_ = classifier.compile
    monkeypatch.setattr(classifier, "compile", lambda **_: compile_(backend=counter))
    compile_in_place(classifier, "cpu")
    images = torch.rand(4, 3, 64, 64)
    for _ in range(2):
        classifier(images).sum().backward()
    assert counter.frame_count == 1


def test_compiled_gradients_are_the_eager_ones():
    """With the CPU's compiler options, which store the response norm's sums."""
    images, labels = 255 * torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    found = []
    for compiled in (False, True):
        classifier = classifier_of("alexnet").eval()  # no dropout
        if compiled:
            compile_in_place(classifier, "cpu")
        torch.nn.functional.cross_entropy(classifier(images - 128), labels).backward()
        found.append([p.grad for p in classifier.parameters()])
    for eager, compiled in zip(*found, strict=True):
        assert torch.allclose(eager, compiled, rtol=1e-3, atol=1e-5 * float(eager.abs().max()))
        assert eager.abs().max() > 0
