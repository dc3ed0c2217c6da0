"""The precision of a run's training on a machine, and that trained networks are used in float32."""

import platform
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.entries import Recorder
from torch import nn

from pipeline.errors import RunError, UsageError
from trainer import precision as module
from trainer.distributed.env import DistEnv
from trainer.evaluation.evaluate import evaluate_checkpoints
from trainer.figures.filters import draw_maps, saliency
from trainer.inference.classify import classify_images
from trainer.inference.examples import some_images
from trainer.inference.features import features
from trainer.inference.preprocess import as_batch
from trainer.models.classifier import Classifier
from trainer.precision import Precision, check_precision, choose_precision, computing
from trainer.runs import checkpoint, metrics_file
from trainer.training.options import TrainJob
from trainer.training.trainer import train

CPU = torch.device("cpu")


def tf32() -> dict[str, str]:
    """Operation → how its float32 products are computed now."""
    backends = torch.backends
    return {
        "matmul": backends.cuda.matmul.fp32_precision,
        "convolution": backends.cudnn.conv.fp32_precision,
        "matmul on the CPU": backends.mkldnn.matmul.fp32_precision,
        "convolution on the CPU": backends.mkldnn.conv.fp32_precision,
    }


EXACT = dict.fromkeys(tf32(), "ieee")


@pytest.fixture
def gpu(monkeypatch):
    """Pretend a GPU with the given compute capability."""

    def pretend(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")

    return pretend


@pytest.fixture
def notebook():
    """Settings of torch as a notebook may have them: TF32 on GPUs, bfloat16 products on the CPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    settings = tf32()
    assert settings["convolution"] == "tf32"  # torch's default
    yield settings
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def seen(monkeypatch):
    """What convolutions and linear layers computed in: (autocast's dtype, settings, training mode)."""
    found = []
    for kind in (nn.Conv2d, nn.Linear):

        def forward(self, x, original=kind.forward):
            out = original(self, x)
            found.append((out.dtype, tuple(tf32().items()), torch.is_grad_enabled()))
            return out

        monkeypatch.setattr(kind, "forward", forward)
    return found


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16", "float16"])
def test_on_the_cpu_a_recipe_gets_what_it_says(tiny_recipe, precision, monkeypatch):
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: True)
    found = choose_precision(replace(tiny_recipe, precision=precision, tf32=True), "cpu")
    assert found == Precision(getattr(torch, precision))
    assert str(found) == precision
    assert found.is_mixed == (precision in ("bfloat16", "float16"))
    assert (found.new_scaler(CPU) is not None) == (precision == "float16")


def test_a_cpu_without_bfloat16_uses_float32_and_says_so(tiny_recipe, monkeypatch):
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: False)
    found = choose_precision(replace(tiny_recipe, precision="bfloat16"), "cpu")
    assert found == Precision(note="this processor has no bfloat16: float32 instead")


def test_bfloat16_support_agrees_with_the_processors_flags():
    """On x86 torch's bfloat16 kernels need AVX-512."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        pytest.skip("no x86 Linux")
    flags = Path("/proc/cpuinfo").read_text().split()
    assert module.cpu_has_bfloat16() == ({"avx512bw", "avx512vl", "avx512dq"} <= set(flags))


@pytest.mark.parametrize(
    ("capability", "dtype", "note"),
    [
        ((7, 5), torch.float16, "Tesla T4 has no bfloat16: float16 with loss scaling instead"),
        ((8, 0), torch.bfloat16, ""),
        ((9, 0), torch.bfloat16, ""),
    ],
)
def test_only_gpus_without_bfloat16_use_float16_and_say_so(tiny_recipe, gpu, capability, dtype, note):
    gpu(*capability)
    assert choose_precision(replace(tiny_recipe, precision="bfloat16"), "gpu") == Precision(dtype, note=note)


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_training_has_the_recipes_tf32_and_benchmarks_unless_deterministic(
    tiny_recipe, gpu, notebook, on, deterministic, monkeypatch
):
    gpu(9, 0)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    chosen = choose_precision(replace(tiny_recipe, tf32=on), "gpu")
    assert str(chosen) == ("float32 with TF32" if on else "float32")
    with chosen.training():
        wanted = "tf32" if on else "ieee"
        assert tf32() == EXACT | {"matmul": wanted, "convolution": wanted}
        assert torch.backends.cudnn.benchmark == (not deterministic)
        with computing("float32", CPU):
            assert tf32() == EXACT
        assert tf32()["convolution"] == wanted
    assert tf32() == notebook
    assert not torch.backends.cudnn.benchmark


def evaluated(run: Path, dataset, classifier: Classifier, **options: object) -> None:
    evaluate_checkpoints(DistEnv(), [run], dataset.root, "val", "center", 16, **options)


def predicted(run: Path, dataset, classifier: Classifier, **options: object) -> None:
    image = next((dataset.root.parent / "source").rglob("*.jpg"))
    assert not next(classify_images([classifier], [image], **options)).error


def of_an_image(use, run: Path, dataset, classifier: Classifier, **options: object) -> None:
    (image,) = some_images(dataset, "val", classifier.spec, 1, seed=0)
    use(classifier.eval(), image.crop, **options)


USES = {
    "evaluation": evaluated,
    "prediction": predicted,
    "features": partial(of_an_image, lambda c, crop, **o: features(c, as_batch([crop]), **o)),
    "saliency": partial(of_an_image, lambda c, crop, **o: saliency(c, crop, 0, **o)),
    "maps": partial(of_an_image, lambda c, crop, **o: draw_maps(c, crop, ["conv1"], "", **o)),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("use", USES)
def test_every_use_of_a_network_has_its_own_precision_and_restores_torchs(
    tiny_checkpoint, tiny_dataset, tiny_classifier, notebook, seen, use, precision
):
    """Float32 without TF32 by default, though a notebook set other precisions and autocast."""
    options = {} if precision == "float32" else {"precision": precision}
    with torch.autocast("cpu", torch.bfloat16):
        USES[use](tiny_checkpoint, tiny_dataset, tiny_classifier, **options)
    assert {dtype for dtype, *_ in seen[-8:]} == {getattr(torch, precision)}
    assert {settings for _, settings, _ in seen[-8:]} == {tuple(EXACT.items())}
    assert tf32() == notebook


def test_a_bfloat16_run_validates_in_float32_as_evaluation_does(
    tiny_recipe, tiny_dataset, tmp_path, monkeypatch, seen
):
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: True)
    recipe = replace(tiny_recipe, epochs=1, precision="bfloat16")
    job = TrainJob(tiny_dataset.root, tmp_path / "run", recipe)
    train(DistEnv(), job)
    assert {(dtype, training) for dtype, _, training in seen} == {
        (torch.bfloat16, True),
        (torch.float32, False),
    }
    (row,) = metrics_file.read_metrics(job.out)
    found = evaluate_checkpoints(DistEnv(), [job.out / "last.pt"], job.data, "val", "center", 32)
    assert (found.metrics.loss, found.metrics.top1, found.precision) == (
        row.val_loss,
        row.val_top1,
        "float32",
    )


def floats(content: object) -> list[torch.dtype]:
    """Dtypes of the floating-point tensors in nested dicts and lists."""
    if isinstance(content, torch.Tensor):
        return [content.dtype] * content.is_floating_point()
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return [dtype for part in parts for dtype in floats(part)]


def test_a_float64_run_is_float64_in_training_validation_and_checkpoints(
    tiny_recipe, tiny_dataset, tmp_path, seen
):
    recipe = replace(tiny_recipe, epochs=1, precision="float64", std="channel", ema_decay=0.9)
    job = TrainJob(tiny_dataset.root, tmp_path / "run", recipe)
    recorder = Recorder()
    train(DistEnv(), job, [recorder])
    assert {(dtype, training) for dtype, _, training in seen} == {
        (torch.float64, True),
        (torch.float64, False),
    }
    assert "float64" in recorder.facts["network"]
    assert "images in float64" in recorder.facts["validation"]
    content = checkpoint.load(job.out / "last.pt")
    for part in ("model", "optimizer", "ema_weights"):
        assert {*floats(content[part])} == {torch.float64}, part
    (row,) = metrics_file.read_metrics(job.out)
    found = evaluate_checkpoints(DistEnv(), [job.out / "last.pt"], job.data, "val", "center", 32)
    assert found.metrics.loss == pytest.approx(row.val_loss, rel=1e-5)  # in float32, as all trained networks


def test_a_compiled_network_is_not_validated_by_the_graph_of_its_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5))
    compiled, x = torch.compile(model, backend="aot_eager"), torch.randn(4, 3, 8, 8)
    with torch.inference_mode():
        expected = model(x)
        for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
            with computing(precision, CPU):
                found = compiled(x)
            assert found.dtype == dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [("bfloat", "gpu", "did you mean 'bfloat16'"), ("tf32", "cpu", "only GPUs compute in it")],
)
def test_precisions_that_are_none_or_not_to_be_had_are_refused(name, kind, message):
    with pytest.raises(UsageError, match=message):
        check_precision(name, kind)


def test_a_gpu_out_of_memory_is_one_line_with_a_remedy():
    with pytest.raises(RunError, match="smaller batches"), computing("float32", CPU):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB. GPU 0 has ...")
