"""Check that a training job's recipe, dataset and processes fit together, before anything is built."""

import math

import torch

from pipeline.dataset.dataset import Dataset
from pipeline.errors import UsageError
from pipeline.loader.views import check_crop
from trainer.distributed.env import DistEnv, Kind
from trainer.models.alexnet import build_model, layer_names
from trainer.recipe import Recipe
from trainer.training.options import TrainJob


def check_job(job: TrainJob, dataset: Dataset, kind: Kind, processes: int) -> int:
    """Check that a job's recipe and options, its dataset and the processes fit together.

    Args:
        job: The job; its run folder is not looked at.
        dataset: The job's dataset, opened.
        kind: "gpu" or "cpu".
        processes: Number of processes.

    Returns:
        Batch size of each process.

    Raises:
        UsageError: They do not fit: options that exclude each other, a backend or gradient compression that
            the processes cannot have, a crop larger than the images, a network that cannot be built or has no
            such layer, a missing training split or mean image, options that need a validation split that is
            missing or not used, or an impossible batch size.
    """
    recipe = job.recipe
    if kind == "cpu":
        job.loader_options.choose(DistEnv(kind=kind))  # refuses to decode on a GPU
    if job.cuda_graphs and (kind == "cpu" or not recipe.compile):
        raise UsageError("--cuda-graphs needs GPUs and a recipe that compiles (--set compile=true)")
    if job.force and job.resume != "no":
        raise UsageError("--force replaces the run that --resume would continue; leave one of them out")
    if job.cuda_graphs and processes > 1:
        raise UsageError(
            f"--cuda-graphs with {processes} GPUs has not been tried, as the graphs would hold the exchange "
            "of gradients; use --gpus 1, or leave it out"
        )
    if recipe.precision == "float64" and kind == "gpu":
        raise UsageError(
            "precision float64 is for CPU processes, and these are GPUs; use --cpus 1, or --set "
            "precision=float32"
        )
    if recipe.precision == "float16" and recipe.grad_compression == "powersgd":
        raise UsageError(
            "--set grad_compression=powersgd keeps the errors of overflowed float16 gradients for good; use "
            "bf16 or none, or --set precision=bfloat16"
        )
    if job.debugging.one_batch and job.resume != "no":
        raise UsageError(f"{job.debugging.one_batch} cannot be resumed; leave --resume out")
    if recipe.grad_compression == "bf16" and kind == "cpu":  # gloo cannot sum bfloat16
        raise UsageError(
            "--set grad_compression=bf16 needs GPUs and NCCL, and these are CPU processes; use powersgd or "
            "none"
        )
    dataset.shards("train")
    batch_size = _local_batch_size(recipe, processes)
    check_crop(recipe.crop, dataset.image.size)
    _check_layers(recipe, len(dataset.classes))
    if recipe.mean == "image":
        dataset.mean_image()
    if not job.validates(dataset):
        _refuse_without_validation(job, dataset)
    if (samples := len(dataset.samples("train"))) < recipe.batch_size:
        raise UsageError(
            f"{dataset.url}: train has {samples} samples, fewer than one global batch of "
            f"{recipe.batch_size}; choose a smaller batch_size"
        )
    return batch_size


def _refuse_without_validation(job: TrainJob, dataset: Dataset) -> None:
    """Refuse what looks at validations, in a run without any."""
    plateau = job.recipe.schedule == "plateau"
    needs = [*job.validation.options, *(["schedule=plateau"] if plateau else [])]
    if not needs:
        return
    remedy = f"leave {needs[0]} out" if job.validation.options else "use --set schedule=cosine"
    if not job.validation.enabled:
        raise UsageError(
            f"--no-val leaves out the validation that {needs[0]} needs; leave it out, or {remedy}"
        )
    raise UsageError(
        f"{dataset.url}: has no split 'val', which {needs[0]} needs; {remedy}, or prepare the images with a "
        "validation folder or with `alexnet-prep shard --val-fraction 0.1`"
    )


def _local_batch_size(recipe: Recipe, processes: int) -> int:
    if recipe.batch_size % processes:
        fewer = next(n for n in range(processes, 0, -1) if recipe.batch_size % n == 0)
        larger = math.ceil(recipe.batch_size / processes) * processes
        raise UsageError(
            f"batch_size {recipe.batch_size} does not divide among {processes} processes; use {fewer}, or "
            f"--set batch_size={larger}"
        )
    local = recipe.batch_size // processes
    if local % recipe.accumulation_steps:
        fits = next(n for n in range(min(recipe.accumulation_steps, local), 0, -1) if local % n == 0)
        raise UsageError(
            f"accumulation_steps {recipe.accumulation_steps} does not divide a process's {local} images; use "
            f"--set accumulation_steps={fits}"
        )
    if recipe.arch == "alexnet_bn" and local == recipe.accumulation_steps:
        raise UsageError(
            f"batch_size {recipe.batch_size} leaves each of {processes} processes one image in each of "
            f"{recipe.accumulation_steps} accumulation steps, and batch normalization needs two; use --set "
            f"batch_size={2 * processes * recipe.accumulation_steps} or more"
        )
    return local


def _check_layers(recipe: Recipe, classes: int) -> None:
    with torch.random.fork_rng(devices=[]):  # any width has the same layers
        known = layer_names(build_model(recipe.arch, classes, width=0.01, crop=64))
    for stage in recipe.stages:
        for layer in stage.layer_lr_factors or {}:
            if layer not in known:
                raise UsageError(
                    f"recipe {recipe.name}: layer_lr_factors names {layer!r}, which is no layer of "
                    f"{recipe.arch}; its layers are {', '.join(known)}"
                )
