"""Jobs whose recipe, dataset and processes do not fit together are refused, with a remedy."""

from dataclasses import replace

import pytest
import torch

from pipeline.errors import UsageError
from trainer.recipe import Stage, load_recipe
from trainer.runs.records import Validation
from trainer.training.checks import check_job
from trainer.training.options import Debugging, TrainJob


def stages(**layers):
    return (Stage(epoch=3, layer_lr_factors=layers),)


@pytest.mark.parametrize(
    ("changes", "processes", "words"),
    [
        ({}, 3, r"batch_size 32 does not divide among 3 processes; use 2, or --set batch_size=33"),
        ({"batch_size": 7}, 4, "among 4 processes; use 1, "),
        ({"accumulation_steps": 5}, 1, "accumulation_steps 5 does not divide .* accumulation_steps=4"),
        ({}, 32, "batch normalization needs two; use --set batch_size=64"),
        ({"batch_size": 91}, 1, "train has 90 samples, fewer than one global batch of 91"),
        ({"crop": 73}, 1, "crop of 73 px"),
        ({"stages": stages(conv1=0.1, conv9=0.1)}, 1, r"'conv9'.*alexnet_bn.*conv1, .*fc8"),
        (
            {"grad_compression": "powersgd", "precision": "float16"},
            2,
            "errors of overflowed float16 gradients",
        ),
        ({"grad_compression": "bf16"}, 2, "bf16 needs GPUs and NCCL, .* use powersgd or none"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(tiny_recipe, tiny_dataset, changes, processes, words):
    job = TrainJob(tiny_dataset.root, "run", replace(tiny_recipe, **changes))
    with pytest.raises(UsageError, match=words):
        check_job(job, tiny_dataset, "cpu", processes)


def test_options_that_exclude_each_other_are_refused(tiny_recipe, tiny_dataset):
    job = TrainJob(tiny_dataset.root, "run", tiny_recipe)
    compiled = replace(job, recipe=replace(tiny_recipe, compile=True), cuda_graphs=True)
    for kind, wrong in (("cpu", compiled), ("gpu", replace(job, cuda_graphs=True))):
        with pytest.raises(UsageError, match="--cuda-graphs needs GPUs and a recipe that compiles"):
            check_job(wrong, tiny_dataset, kind, 1)
    with pytest.raises(UsageError, match="float64 is for CPU processes, and these are GPUs; use --cpus 1"):
        check_job(replace(job, recipe=replace(tiny_recipe, precision="float64")), tiny_dataset, "gpu", 1)
    with pytest.raises(UsageError, match=r"--cuda-graphs with 2 GPUs has not been tried, .* use --gpus 1"):
        check_job(compiled, tiny_dataset, "gpu", 2)
    assert check_job(compiled, tiny_dataset, "gpu", 1) == 32
    resumed = replace(job, resume="auto", debugging=Debugging(synthetic=True))
    with pytest.raises(UsageError, match="--synthetic cannot be resumed"):
        check_job(resumed, tiny_dataset, "cpu", 1)


def test_a_dataset_without_mean_image_or_training_images_is_refused(tiny_recipe, tiny_dataset):
    manifest = tiny_dataset.manifest
    for change, words in (
        ({"image": replace(manifest.image, mode="aspect")}, "no mean image"),
        ({"splits": {"test": manifest.splits["val"]}, "statistics": None}, "no split 'train', only test"),
    ):
        other = replace(tiny_dataset, manifest=replace(manifest, **change))
        with pytest.raises(UsageError, match=words):
            check_job(TrainJob(other.url, "run", tiny_recipe), other, "cpu", 1)


def test_what_needs_a_validation_that_there_is_not_is_refused(tiny_recipe, tiny_dataset):
    """Averaged weights do not: they are kept in last.pt."""
    splits = {"train": tiny_dataset.manifest.splits["train"]}
    other = replace(tiny_dataset, manifest=replace(tiny_dataset.manifest, splits=splits))
    job = TrainJob(other.url, "run", replace(tiny_recipe, ema_decay=0.9))
    plateau, no_val = replace(tiny_recipe, schedule="plateau"), Validation(enabled=False)
    assert check_job(job, other, "cpu", 1) == 32
    for change, words in (
        (
            {"validation": Validation(patience=3)},
            r"no split 'val', which --patience 3 needs; leave --patience 3 out",
        ),
        ({"validation": Validation(every_steps=3)}, "no split 'val', which --val-every-steps 3 needs"),
        (
            {"recipe": plateau},
            r"schedule=plateau needs; use --set schedule=cosine, or .* --val-fraction 0\.1",
        ),
        (
            {"recipe": plateau, "validation": no_val},
            "--no-val leaves out the validation that schedule=plateau needs",
        ),
    ):
        with pytest.raises(UsageError, match=words):
            check_job(replace(job, **change), other, "cpu", 1)
    with pytest.raises(UsageError, match="--no-val leaves out the validation that --patience 3 needs"):
        Validation(enabled=False, patience=3)


def test_local_batches_make_up_the_global_batch_and_no_random_number_is_drawn(tiny_recipe, tiny_dataset):
    recipe = replace(load_recipe("source"), crop=64, batch_size=32, grad_compression="bf16")
    job, before = TrainJob(tiny_dataset.root, "run", recipe), torch.get_rng_state()
    assert [check_job(job, tiny_dataset, "gpu", n) * n for n in (1, 2, 4, 8, 16, 32)] == [32] * 6
    assert torch.equal(torch.get_rng_state(), before)
