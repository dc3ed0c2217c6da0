"""The precision that a recipe gets on a machine."""

import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer.training import precision as module
from trainer.training.precision import choose_precision, in_words


@pytest.fixture
def gpu(monkeypatch):
    """Pretend a GPU with the given compute capability."""

    def pretend(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")

    return pretend


@pytest.fixture(autouse=True)
def restored():
    """Restore torch's global TF32 settings."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_on_the_cpu_a_recipe_gets_what_it_says(tiny_recipe, precision, monkeypatch):
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: True)
    found = choose_precision(replace(tiny_recipe, precision=precision), "cpu")
    assert found.dtype == getattr(torch, precision)
    assert (found.device, found.note) == ("cpu", "")
    assert found.is_mixed == (precision != "float32")
    assert (found.new_scaler() is not None) == (precision == "float16")


def test_a_cpu_without_bfloat16_uses_float32_and_says_so(tiny_recipe, monkeypatch):
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: False)
    found = choose_precision(replace(tiny_recipe, precision="bfloat16"), "cpu")
    assert (found.dtype, found.device, found.is_mixed) == (torch.float32, "cpu", False)
    assert found.note == "this processor has no bfloat16: float32 instead"


def test_bfloat16_support_agrees_with_the_processors_flags():
    """On x86 torch's bfloat16 kernels need AVX-512."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        pytest.skip("no x86 Linux")
    flags = Path("/proc/cpuinfo").read_text().split()
    assert module.cpu_has_bfloat16() == ({"avx512bw", "avx512vl", "avx512dq"} <= set(flags))


def test_a_gpu_without_bfloat16_uses_float16_with_scaling_and_says_so(tiny_recipe, gpu):
    gpu(7, 5)
    found = choose_precision(replace(tiny_recipe, precision="bfloat16"), "gpu")
    assert (found.dtype, found.device) == (torch.float16, "cuda")
    assert found.note == "Tesla T4 has no bfloat16: float16 with loss scaling instead"


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0)])
def test_newer_gpus_keep_bfloat16(tiny_recipe, gpu, capability):
    gpu(*capability)
    found = choose_precision(replace(tiny_recipe, precision="bfloat16"), "gpu")
    assert (found.dtype, found.note, found.new_scaler()) == (torch.bfloat16, "", None)


@pytest.mark.parametrize("tf32", [False, True])
def test_tensorfloat_is_the_recipes_choice_and_logged(tiny_recipe, gpu, tf32):
    gpu(9, 0)
    recipe = replace(tiny_recipe, tf32=tf32)
    found = choose_precision(recipe, "gpu")
    assert torch.backends.cuda.matmul.allow_tf32 == tf32
    assert torch.backends.cudnn.allow_tf32 == tf32
    assert in_words(recipe, found) == f"float32, TF32 {'on' if tf32 else 'off'}"
