"""Evaluation against NumPy and scikit-learn, on images read with tarfile and Pillow."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.entries import LinearModel, evaluate_everywhere
from helpers.reference import crops, measured, probabilities_of, softmax, stored
from sklearn.metrics import confusion_matrix
from torch import nn

from pipeline import EvalView, Loader, ReadOptions, UsageError
from pipeline.dataset.samples import Samples
from pipeline.errors import RunError
from pipeline.text import in_bytes
from trainer.data import LoaderOptions
from trainer.distributed.env import DistEnv, Processes
from trainer.distributed.launch import launch
from trainer.evaluation.evaluate import SharedClasses, evaluate, evaluate_checkpoints
from trainer.models.classifier import Classifier, new_classifier
from trainer.runs import checkpoint

pytestmark = pytest.mark.usefixtures("quick_workers")


def spread(model: Classifier) -> Classifier:
    """Scale the last layer to logits of standard deviation 2, so that predictions differ between images."""
    pixels = 255 * torch.rand(16, 3, model.spec.crop, model.spec.crop)
    with torch.no_grad():
        model.model.fc8.weight *= 2 / model.eval().classify(pixels).std()
    return model


class Fixed(nn.Module):
    """A network with given logits (N, V, K); an image's first pixel is its sample, its second its view."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = torch.from_numpy(logits).float()

    def classify(self, pixels):
        return self.logits[pixels[:, 0, 0, 0].long(), pixels[:, 0, 0, 1].long()]


class Batches:
    """A loader whose images hold their sample number and view as pixels, with twelve classes."""

    split = "val"
    dataset = SimpleNamespace(classes=[f"class {number}" for number in range(12)])

    def __init__(self, labels: np.ndarray, views: int, batch_size: int, samples: int | None = None) -> None:
        self.labels, self.views, self.global_batch = labels, views, batch_size
        self.samples = len(labels) if samples is None else samples

    def __iter__(self):
        for start in range(0, len(self.labels), self.global_batch):
            numbers = np.arange(start, min(start + self.global_batch, len(self.labels)))
            images = np.zeros((len(numbers), self.views, 3, 2, 2), np.float32)
            images[..., 0, 0] = numbers[:, None, None]
            images[..., 0, 1] = np.arange(self.views)[None, :, None]
            images = torch.from_numpy(images if self.views > 1 else images[:, 0])
            yield SimpleNamespace(images=images, labels=torch.from_numpy(self.labels[numbers]))


@pytest.mark.parametrize(("views", "models", "batch_size"), [(1, 1, 64), (10, 1, 4), (1, 3, 23), (10, 3, 4)])
def test_probabilities_not_logits_are_averaged_over_views_and_models(views, models, batch_size):
    rng = np.random.default_rng(views * models)
    logits, labels = rng.normal(0, 4, (models, 23, views, 12)), rng.integers(0, 12, 23)
    got = evaluate([Fixed(each) for each in logits], Batches(labels, views, batch_size), DistEnv())
    top1, top5, loss = measured(softmax(logits).mean(axis=(0, 2)), labels)
    assert (got.samples, got.top1, got.top5) == (23, top1, top5)
    assert got.loss == pytest.approx(loss, rel=1e-5)
    assert got.largest_class == np.bincount(labels).max() / 23
    if views * models > 1:
        averaged_logits = measured(softmax(logits.mean(axis=(0, 2))), labels)
        assert got.loss != pytest.approx(averaged_logits[2], rel=1e-3)


def test_fewer_than_five_classes_have_a_full_top5():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, 1, 3)), rng.integers(0, 3, 9)
    got = evaluate([Fixed(logits)], Batches(labels, 1, 4), DistEnv())
    assert got.top5 == 1.0
    assert got.top1 == measured(softmax(logits[:, 0]), labels)[0] < 1


def test_a_missing_sample_is_an_error():
    with pytest.raises(RunError, match="saw 9 samples of 10 in val"):
        evaluate([Fixed(np.zeros((9, 1, 3)))], Batches(np.zeros(9, np.int64), 1, 4, samples=10), DistEnv())


def test_outputs_of_nan_are_an_error_not_a_perfect_score():
    logits = np.zeros((9, 1, 3))
    logits[4] = np.nan
    with pytest.raises(RunError, match="diverged"):
        evaluate([Fixed(logits)], Batches(np.zeros(9, np.int64), 1, 4), DistEnv())


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_uses_eval_mode_and_leaves_the_mode_as_it_was(tiny_classifier, tiny_dataset, training):
    tiny_classifier.train(training)
    before = {name: buffer.clone() for name, buffer in tiny_classifier.named_buffers()}
    with Loader(tiny_dataset, "val", EvalView("center", 64), 7) as loader:
        first, second = (evaluate([tiny_classifier], loader, DistEnv()) for _ in range(2))
    assert first == second  # neither dropout nor batch-norm updates
    assert tiny_classifier.training == training
    assert tiny_classifier.model.bn1.training == training
    assert all(torch.equal(before[name], buffer) for name, buffer in tiny_classifier.named_buffers())


@pytest.fixture(scope="module")
def spread_models(tiny_recipe, tiny_dataset, tmp_path_factory):
    """Kind → (model, its checkpoint): networks of different preprocessing and layers."""
    folder = tmp_path_factory.mktemp("models")
    kinds = {
        "mean image": {},
        "mean and std": {"mean": "channel", "std": "channel"},
        "lrn": {"arch": "alexnet"},
    }
    found = {}
    for seed, (kind, settings) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        model = spread(new_classifier(replace(tiny_recipe, **settings), tiny_dataset))
        found[kind] = (model, folder / f"{seed}.pt")
        checkpoint.save(found[kind][1], model)
    return found


@pytest.fixture(scope="module")
def samples(tiny_dataset):
    """Validation images, sorted by key."""
    return sorted(stored(tiny_dataset), key=lambda sample: sample.key)


def assert_predicted(got, samples, expected, kept=5):
    """Check metrics and predictions of an evaluation against probabilities (N, K)."""
    labels = np.array([sample.label for sample in samples])
    top1, top5, loss = measured(expected, labels)
    assert got.metrics.samples == len(samples)
    assert (got.metrics.top1, got.metrics.top5) == (pytest.approx(top1), pytest.approx(top5))
    assert got.metrics.loss == pytest.approx(loss, rel=1e-4)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :kept]
    found = got.predictions
    assert found.keys == tuple(sample.key for sample in samples)
    assert np.array_equal(found.labels, labels)
    assert np.array_equal(found.classes, order)
    assert [x.dtype for x in (found.labels, found.classes, found.probabilities)] == [np.int64] * 2 + [
        np.float32
    ]
    np.testing.assert_allclose(found.probabilities, np.take_along_axis(expected, order, axis=1), rtol=1e-4)
    return labels, order


@pytest.mark.parametrize(
    ("kind", "views"),
    [("mean image", "center"), ("mean image", "ten-crop"), ("mean and std", "ten-crop"), ("lrn", "center")],
)
def test_an_evaluation_is_that_of_pillow_and_numpy(spread_models, tiny_dataset, samples, kind, views):
    model, file = spread_models[kind]
    got = evaluate_checkpoints(DistEnv(), [file], tiny_dataset.root, "val", views, 8, predict=True)
    labels, order = assert_predicted(got, samples, probabilities_of(model, samples, views))
    assert (got.split, got.views, got.classes, got.checkpoints) == ("val", views, 10, (str(file),))
    assert got.confusion.dtype == np.int64
    assert np.array_equal(got.confusion, confusion_matrix(labels, order[:, 0], labels=range(10)))
    for number, info in enumerate(got.per_class):
        mine = labels == number
        assert (info.id, info.samples) == (tiny_dataset.classes[number], mine.sum())
        assert info.top1 == (order[mine, 0] == number).mean()
        assert info.top5 == (order[mine] == number).any(axis=1).mean()


@pytest.mark.parametrize("weights", [None, (2, 1, 0.5), (3, 0, 0)])
def test_an_ensemble_averages_probabilities_by_weight(spread_models, tiny_dataset, samples, weights):
    models, files = zip(*spread_models.values(), strict=True)
    got = evaluate_checkpoints(DistEnv(), files, tiny_dataset.root, "val", "center", 8, weights, predict=True)
    each = [probabilities_of(model, samples, "center") for model in models]
    assert_predicted(got, samples, np.average(each, axis=0, weights=weights))
    assert got.ensemble_weights == pytest.approx(np.array(weights or [1] * 3) / sum(weights or [1] * 3))


def test_predictions_are_kept_only_on_request(tiny_checkpoint, tiny_dataset):
    got = evaluate_checkpoints(DistEnv(), [tiny_checkpoint], tiny_dataset.root, "val", "center", 8)
    assert got.predictions is None


def test_the_log_says_once_what_is_fetched_for_the_first_batch(tiny_checkpoint, tiny_dataset, tmp_path):
    options, lines = LoaderOptions(access=ReadOptions(cache=tmp_path)), []
    for _ in range(2):
        evaluate_checkpoints(
            *(DistEnv(), [tiny_checkpoint], tiny_dataset.root, "val", "center", 8),
            loader_options=options,
            on_log=lines.append,
        )
    size = in_bytes(tiny_dataset.shards("val")[0].bytes)
    assert lines == [f"fetching 1 shard, {size}, for the first batch"]


def test_keys_that_the_index_does_not_name_are_an_error(tiny_checkpoint, tiny_dataset, monkeypatch):
    keys = tiny_dataset.samples("val").keys()
    monkeypatch.setattr(Samples, "keys", lambda _: ["other", *keys[1:]])
    with pytest.raises(RunError, match="missed 1 of 30 samples and saw 0"):
        evaluate_checkpoints(DistEnv(), [tiny_checkpoint], tiny_dataset.root, "val", "center", 8)


def test_a_sample_seen_twice_in_place_of_another_is_an_error(tiny_checkpoint, tiny_dataset, tmp_path):
    """An index lists one sample twice, so that the number of samples is still right."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_dataset.root, folder)
    index = next((folder / "val").glob("*.idx"))
    head, first, _, *rest = index.read_text().split("\n")
    index.write_text("\n".join([head, first, first, *rest]))
    with pytest.raises(RunError, match=r"missed 0 of 30 samples and saw 1 keys again.*alexnet-prep verify"):
        evaluate_checkpoints(DistEnv(), [tiny_checkpoint], folder, "val", "center", 8)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 1], "2 weights for 1 checkpoint;"),
        ([-1], "weights -1: each must be 0 or more"),
        ([0], "weights 0: .* one above 0"),
        ([float("nan")], "weights is nan, not a number"),
        (["1"], "weights is '1', not a number"),
        ([float("inf")], "weights inf"),
    ],
)
def test_weights_that_do_not_fit(tiny_checkpoint, tiny_dataset, weights, message):
    with pytest.raises(UsageError, match=message):
        evaluate_checkpoints(DistEnv(), [tiny_checkpoint], tiny_dataset.root, "val", "center", 8, weights)


def test_three_processes_see_every_sample_once_and_agree_with_one(spread_models, tiny_dataset, samples):
    _, file = spread_models["mean image"]
    alone, _, alone_predictions = evaluate_everywhere(DistEnv(), file, tiny_dataset.root)
    weight = LinearModel(10, 64).weight.double().numpy()
    pixels = np.stack([crops(sample.pixels, 64, "center")[0].ravel() for sample in samples])
    labels = np.array([sample.label for sample in samples])
    top1, top5, loss = measured(softmax(pixels.astype(np.float64) @ weight), labels)
    assert (alone[0].top1, alone[0].top5) == (pytest.approx(top1), pytest.approx(top5))
    assert alone[0].loss == pytest.approx(loss, rel=1e-5)
    assert alone[0].largest_class == np.bincount(labels).max() / len(labels)
    metrics, keys, predictions = launch(Processes("cpu", 3, ""), evaluate_everywhere, file, tiny_dataset.root)
    assert sorted(keys) == [sample.key for sample in samples]
    assert predictions.keys == alone_predictions.keys
    assert np.array_equal(predictions.labels, alone_predictions.labels)
    assert np.array_equal(predictions.classes, alone_predictions.classes)
    np.testing.assert_allclose(predictions.probabilities, alone_predictions.probabilities, rtol=1e-5)
    for got, expected in zip(metrics, alone, strict=True):
        exact = ("samples", "top1", "top5", "largest_class")
        assert [getattr(got, name) for name in exact] == [getattr(expected, name) for name in exact]
        assert (got.loss, got.ece) == pytest.approx((expected.loss, expected.ece), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda spec: {"classes": ("a", "b"), "names": ()},
            r"its 2 classes and the 10 of .* share fewer than two \(the network's: a, b; .* and 5 more",
        ),
        (lambda spec: {"size": 256}, "shorter side of 256 px.*has 72 px.*--size 256"),
    ],
)
def test_other_data_is_refused(tiny_classifier, tiny_dataset, tmp_path, change, message):
    spec = tiny_classifier.spec
    checkpoint.save(tmp_path / "model.pt", Classifier(replace(spec, **change(spec))))
    with pytest.raises(UsageError, match=message):
        evaluate_checkpoints(DistEnv(), [tmp_path / "model.pt"], tiny_dataset.root, "val", "center", 8)


def narrowed(tiny_recipe, dataset, folder, ids, names=(), seed=0):
    """A network with other classes than the dataset's, with its checkpoint."""
    torch.manual_seed(seed)
    spec = replace(new_classifier(tiny_recipe, dataset).spec, classes=tuple(ids), names=tuple(names))
    model = spread(Classifier(spec))
    checkpoint.save(folder / f"{seed}.pt", model)
    return model, folder / f"{seed}.pt"


def shuffled(seed, ids, more):
    """Some ids among `more` unknown ones, in random order."""
    mixed = [*ids, *(f"other{number}" for number in range(more))]
    return [mixed[number] for number in np.random.default_rng(seed).permutation(len(mixed))]


def as_names(ids):
    """Ids that are no ids of the dataset, and names whose first is, in another case."""
    return [f"n{number:08d}" for number in range(len(ids))], [f"{name.title()}, something" for name in ids]


NETWORKS = {
    "more classes": (lambda ids: (shuffled(0, ids, 5), ()), range(10), "id"),
    "another order": (lambda ids: (ids[::-1], ()), range(10), "id"),
    "fewer classes": (lambda ids: (shuffled(1, ids[2:9], 0), ()), range(2, 9), "id"),
    "three shared": (lambda ids: (shuffled(2, ids[::4], 4), ()), (0, 4, 8), "id"),
    "names": (lambda ids: as_names(shuffled(3, ids[1:], 3)), range(1, 10), "name"),
    "order": (lambda ids: ([f"x{number}" for number in range(10)], ()), range(10), "order"),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_other_classes_are_evaluated_over_the_shared_ones(tiny_recipe, tiny_dataset, samples, tmp_path, kind):
    """Against NumPy: softmax over the logits of the shared classes, images of other classes left out."""
    classes_of, labels, by = NETWORKS[kind]
    ids, names = classes_of(tiny_dataset.classes)
    model, file = narrowed(tiny_recipe, tiny_dataset, tmp_path, ids, names)
    known = [name.partition(",")[0].lower() for name in names] or ids
    outputs = [label if by == "order" else known.index(tiny_dataset.classes[label]) for label in labels]
    kept = [sample for sample in samples if sample.label in labels]
    expected = np.zeros((len(kept), 10))
    expected[:, labels] = probabilities_of(model, kept, "center", outputs)
    got = evaluate_checkpoints(
        *(DistEnv(), [file], tiny_dataset.root, None, "center", 8),
        predict=True,
        classes_by="order" if by == "order" else "name",
    )
    assert_predicted(got, kept, expected, min(5, len(labels)))
    assert got.shared == SharedClasses(tuple(labels), 10, (len(ids),), (by,), 30 - len(kept))
    assert [info.id for info in got.per_class] == [tiny_dataset.classes[label] for label in labels]
    assert got.confusion.shape == (len(labels), len(labels))
    assert np.trace(got.confusion) / len(kept) == pytest.approx(got.metrics.top1)


def test_an_ensemble_is_evaluated_over_the_classes_that_all_share(
    tiny_recipe, tiny_dataset, samples, tmp_path
):
    ids = tiny_dataset.classes
    one, first = narrowed(tiny_recipe, tiny_dataset, tmp_path, shuffled(4, ids[:8], 2), seed=1)
    two, second = narrowed(tiny_recipe, tiny_dataset, tmp_path, shuffled(5, ids[3:], 6), seed=2)
    shared = ids[3:8]
    kept = [sample for sample in samples if 3 <= sample.label < 8]
    expected = np.zeros((len(kept), 10))
    for model in (one, two):
        outputs = [model.spec.classes.index(name) for name in shared]
        expected[:, 3:8] += probabilities_of(model, kept, "center", outputs) / 2
    got = evaluate_checkpoints(
        DistEnv(), [first, second], tiny_dataset.root, "val", "center", 8, predict=True
    )
    assert_predicted(got, kept, expected)
    assert got.shared == SharedClasses((3, 4, 5, 6, 7), 10, (10, 13), ("id", "id"), 30 - len(kept))
    with pytest.raises(UsageError, match=r"lack 5 of its 10 classes, such as .*evaluate networks that have"):
        evaluate_checkpoints(
            *(DistEnv(), [first, second], tiny_dataset.root, "val", "center", 8), every_image=True
        )


def test_an_ensemble_of_two_crops_is_refused(tiny_classifier, tiny_dataset, tmp_path):
    files = []
    for crop in (64, 70):
        files.append(tmp_path / f"{crop}.pt")
        checkpoint.save(files[-1], Classifier(replace(tiny_classifier.spec, crop=crop)))
    with pytest.raises(UsageError, match=r"70\.pt needs crops of 70 px, but .*64\.pt of 64 px"):
        evaluate_checkpoints(DistEnv(), files, tiny_dataset.root, "val", "center", 8)


def test_a_missing_split_is_named(tiny_checkpoint, tiny_dataset):
    with pytest.raises(UsageError, match="no split 'test'"):
        evaluate_checkpoints(DistEnv(), [tiny_checkpoint], tiny_dataset.root, "test", "center", 8)


def test_a_label_beyond_the_classes_is_named(tiny_classifier, tiny_dataset):
    few = replace(
        tiny_dataset, manifest=replace(tiny_dataset.manifest, classes=tiny_dataset.manifest.classes[:4])
    )
    with (
        Loader(few, "val", EvalView(crop=64), 30) as loader,
        pytest.raises(RunError, match=r"its label is \d, but the manifest names 4 classes"),
    ):
        evaluate([tiny_classifier], loader, DistEnv())
