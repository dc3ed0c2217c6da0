"""Compiling a classifier: one graph, the same gradients as without, and all processes alike."""

import functools
from dataclasses import replace

import pytest
import torch
from helpers.processes import train_with_one_broken_compiler
from torch._dynamo.testing import CompileCounter
from torch._inductor import compile_fx

from trainer.distributed.env import DistEnv, Processes
from trainer.distributed.launch import launch
from trainer.evaluation.evaluate import evaluate_checkpoints
from trainer.models.alexnet import ARCHITECTURES
from trainer.models.classifier import Classifier, Spec
from trainer.precision import Precision
from trainer.recipe import Recipe
from trainer.training import setup
from trainer.training.compiler_errors import describe_compiler_error
from trainer.training.options import Saving, TrainJob
from trainer.training.setup import compile_in_place, run_throwaway_step, wrap_ddp


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


@pytest.mark.parametrize(("shown", "device"), [(4, 3), (1, 0)])
def test_gradients_are_exchanged_from_the_device_of_the_process(shown, device, monkeypatch):
    """A scheduler may show each process one GPU only, which has the number 0 there."""
    given = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: shown)
    monkeypatch.setattr(setup, "DistributedDataParallel", lambda _, **options: given.update(options))
    env = DistEnv(rank=3, world_size=4, local_rank=3, local_world_size=4, kind="gpu")
    wrap_ddp(classifier_of("alexnet"), Recipe(name="", arch="alexnet", epochs=1, lr=0.1, compile=False), env)
    assert given["device_ids"] == [device]


NO_CXX = (
    "InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, {})\n\nSet"
)
NO_CC = (
    "Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl."
)
FAILED = """CppCompileError: C++ compile error

Command:
g++ /cache/a.cpp -o /cache/a.so

Output:
/cache/a.cpp:3:5: error: unknown type name
compilation terminated.
"""


@pytest.mark.parametrize(
    ("text", "variables", "line"),
    [
        (NO_CXX, {}, "no C++ compiler on PATH; install the package g++"),
        (NO_CXX, {"CXX": "nocxx"}, "CXX=nocxx is no working C++ compiler; correct or unset CXX"),
        (NO_CC, {}, "no C compiler on PATH; install the package gcc"),
        (
            FAILED,
            {"TORCHINDUCTOR_CACHE_DIR": "/my cache"},
            "TORCHINDUCTOR_CACHE_DIR is '/my cache', and its compiler needs a path without spaces",
        ),
        (FAILED, {}, "CppCompileError: C++ compile error: /cache/a.cpp:3:5: error: unknown type name"),
        ("word " * 100, {}, ("word " * 100).strip()),
    ],
)
def test_why_nothing_can_be_compiled_is_said_in_whole_sentences(text, variables, line, monkeypatch):
    for name in ("CC", "CXX", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert describe_compiler_error(RuntimeError(text)) == line


@pytest.mark.usefixtures("quick_workers")
def test_processes_agree_on_compilation_and_have_equal_statistics_whenever_these_count(
    tiny_recipe, tiny_dataset, tmp_path
):
    """A compiler that fails in one process only: otherwise the processes would train different graphs."""
    recipe = replace(tiny_recipe, epochs=2, batch_size=30, compile=True)
    job = TrainJob(tiny_dataset.root, tmp_path / "run", recipe, saving=Saving(steps=1))
    first, second = launch(Processes("cpu", 2, ""), train_with_one_broken_compiler, job)
    assert not first.compiled
    assert not second.compiled
    (note,) = first.notes
    assert "torch.compile does not work here" in note
    assert "no C++ compiler here" in note
    assert not first.broadcasts
    assert len(first.shared) == 2 * (2 + 2)  # two saves within an epoch, validation, and the save at its end
    assert any(not torch.equal(one[0], two[0]) for one, two in zip(first.shared, second.shared, strict=True))
    assert all(torch.equal(one[1], two[1]) for one, two in zip(first.shared, second.shared, strict=True))
    assert first.validated == second.validated
    metrics = evaluate_checkpoints(DistEnv(), [job.out / "last.pt"], job.data, "val", "center", 15).metrics
    assert metrics.loss == first.validated[-1].loss


def test_the_compilers_advice_on_tf32_is_not_repeated_to_users(tiny_recipe, tiny_classifier, monkeypatch):
    """Warnings are errors here, as in a user's tests."""
    advice = compile_fx._warn_tf32_disabled.__wrapped__
    advised = functools.cache(advice)  # as torch does: once in a process
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))

    def call(images):
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            advised()
        return tiny_classifier.forward(images)

    tiny_classifier._compiled_call_impl = call
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        with pytest.warns(UserWarning, match="TensorFloat32"):
            advice()
    recipe = replace(tiny_recipe, compile=True)
    run_throwaway_step(tiny_classifier, tiny_classifier, recipe, 4, DistEnv(), Precision(), lambda _: None)
    assert tiny_classifier._compiled_call_impl is call
