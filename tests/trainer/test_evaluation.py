"""Top-1 and top-5 against NumPy and scikit-learn, and against pictures read with tarfile and Pillow."""

import io
import tarfile
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.metrics import top_k_accuracy_score
from torch import nn
from trainer_entries import Answers, evaluate_everywhere

from pipeline import Dataset, EvalView, Loader, UsageError
from pipeline.errors import RunError
from trainer import checkpoint
from trainer.classifier import Classifier, new_classifier
from trainer.distributed import Processes, World, launch
from trainer.evaluation import evaluate, evaluate_checkpoints, label_ranks


@dataclass(frozen=True)
class Sample:
    key: str
    label: int
    pixels: np.ndarray  # (H, W, 3)


def stored(dataset: Dataset, split: str = "val") -> list[Sample]:
    """A split as its tars hold it."""
    samples = []
    for tar in dataset.tars(split):
        with tarfile.open(tar) as archive:
            content = {member.name: archive.extractfile(member).read() for member in archive}
        for name, data in content.items():
            key, kind = name.split(".")
            if kind == "jpg":
                pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                samples.append(Sample(key, int(content[f"{key}.cls"]), pixels))
    return samples


def crops(pixels: np.ndarray, side: int, views: str) -> np.ndarray:
    """Centre, or four corners and centre and their mirrors, float32 (V, 3, side, side)."""
    free = pixels.shape[0] - side
    corners = [(free // 2, free // 2)]
    if views == "ten-crop":
        corners = [(0, 0), (0, free), (free, 0), (free, free), *corners]
    cut = [pixels[y : y + side, x : x + side] for y, x in corners]
    if views == "ten-crop":
        cut += [picture[:, ::-1] for picture in cut]
    return np.stack(cut).transpose(0, 3, 1, 2).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def measured(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Top-1, top-5 and mean −log probability, by a stable sort."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    places = (order == labels[:, None]).argmax(axis=1)
    own = probabilities[np.arange(len(labels)), labels]
    return (places < 1).mean(), (places < 5).mean(), -np.log(own).mean()


def probabilities_of(net: Classifier, samples: list[Sample], views: str) -> np.ndarray:
    """A classifier's averaged probabilities, with its preprocessing done here in NumPy float64."""
    spec = net.spec
    mean = np.array(spec.mean)[:, None, None] if net.mean_image is None else net.mean_image.double().numpy()
    std = np.array(spec.std)[:, None, None]
    rows = []
    for sample in samples:
        prepared = (crops(sample.pixels, spec.crop, views) - mean) / std
        with torch.no_grad():
            logits = net.net(torch.from_numpy(prepared).float()).double().numpy()
        rows.append(softmax(logits).mean(axis=0))
    return np.array(rows)


def opinionated(net: Classifier) -> Classifier:
    """Scale the last layer so that logits spread by 2 and answers differ between pictures and crops."""
    pixels = 255 * torch.rand(16, 3, net.spec.crop, net.spec.crop)
    with torch.no_grad():
        net.net.fc8.weight *= 2 / net.eval().classify(pixels).std()
    return net


scores_with_ties = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 8), st.integers(2, 12)),
    elements=st.sampled_from([0.0, 0.125, 0.25, 0.5]),
)


@given(scores_with_ties, st.randoms(use_true_random=False))
def test_ranks_are_places_in_a_stable_sort(scores, random):
    labels = np.array([random.randrange(scores.shape[1]) for _ in scores])
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = (order == labels[:, None]).argmax(axis=1)
    got = label_ranks(torch.from_numpy(scores), torch.from_numpy(labels))
    assert got.dtype == torch.int64
    assert got.tolist() == expected.tolist()


def test_ranks_give_scikit_learns_top_k():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((500, 20)), rng.integers(0, 20, 500)
    ranks = label_ranks(torch.from_numpy(scores), torch.from_numpy(labels)).numpy()
    for k in (1, 5):
        assert (ranks < k).mean() == top_k_accuracy_score(labels, scores, k=k, labels=range(20))


def test_of_equal_scores_the_lower_class_comes_first():
    scores = torch.zeros(3, 10)
    assert label_ranks(scores, torch.tensor([0, 4, 9])).tolist() == [0, 4, 9]


class Fixed(nn.Module):
    """Logits by sample (its first pixel is its number) and view (its second pixel)."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = torch.from_numpy(logits).float()

    def classify(self, pixels):
        return self.logits[pixels[:, 0, 0, 0].long(), pixels[:, 0, 0, 1].long()]


class Batches:
    """A loader of numbered samples and views, of twelve classes."""

    split = "val"
    dataset = SimpleNamespace(classes=[f"class {number}" for number in range(12)])

    def __init__(self, labels: np.ndarray, views: int, batch_size: int, samples: int | None = None) -> None:
        self.labels, self.views, self.batch_size = labels, views, batch_size
        self.samples = len(labels) if samples is None else samples

    def __iter__(self):
        for start in range(0, len(self.labels), self.batch_size):
            numbers = np.arange(start, min(start + self.batch_size, len(self.labels)))
            images = np.zeros((len(numbers), self.views, 3, 2, 2), np.float32)
            images[..., 0, 0] = numbers[:, None, None]
            images[..., 0, 1] = np.arange(self.views)[None, :, None]
            images = torch.from_numpy(images if self.views > 1 else images[:, 0])
            yield SimpleNamespace(images=images, labels=torch.from_numpy(self.labels[numbers]))


@pytest.mark.parametrize("views", [1, 10])
@pytest.mark.parametrize("nets", [1, 3])
@pytest.mark.parametrize("batch_size", [4, 23, 64])
def test_probabilities_not_logits_are_averaged_over_views_and_nets(views, nets, batch_size):
    rng = np.random.default_rng(views * nets)
    logits, labels = rng.normal(0, 4, (nets, 23, views, 12)), rng.integers(0, 12, 23)
    got = evaluate([Fixed(each) for each in logits], Batches(labels, views, batch_size), World())
    top1, top5, loss = measured(softmax(logits).mean(axis=(0, 2)), labels)
    assert (got.samples, got.top1, got.top5) == (23, top1, top5)
    assert got.loss == pytest.approx(loss, rel=1e-5)
    assert got.largest_class == np.bincount(labels).max() / 23
    if views * nets > 1:
        averaged_logits = measured(softmax(logits.mean(axis=(0, 2))), labels)
        assert got.loss != pytest.approx(averaged_logits[2], rel=1e-3)


def test_fewer_than_five_classes_have_a_full_top5():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, 1, 3)), rng.integers(0, 3, 9)
    got = evaluate([Fixed(logits)], Batches(labels, 1, 4), World())
    assert got.top5 == 1.0
    assert got.top1 == measured(softmax(logits[:, 0]), labels)[0] < 1


def test_a_missing_sample_is_an_error():
    with pytest.raises(RunError, match="saw 9 samples of 10 in val"):
        evaluate([Fixed(np.zeros((9, 1, 3)))], Batches(np.zeros(9, np.int64), 1, 4, samples=10), World())


def test_nets_without_numbers_are_an_error_not_a_perfect_score():
    logits = np.zeros((9, 1, 3))
    logits[4] = np.nan
    with pytest.raises(RunError, match="diverged"):
        evaluate([Fixed(logits)], Batches(np.zeros(9, np.int64), 1, 4), World())


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_uses_eval_mode_and_leaves_the_mode_as_it_was(tiny_classifier, tiny_dataset, training):
    tiny_classifier.train(training)
    before = {name: buffer.clone() for name, buffer in tiny_classifier.named_buffers()}
    with Loader(tiny_dataset, "val", EvalView("centre", 64), 7) as loader:
        first, second = (evaluate([tiny_classifier], loader, World()) for _ in range(2))
    assert first == second  # neither dropout nor batch statistics
    assert tiny_classifier.training == training
    assert tiny_classifier.net.bn1.training == training
    assert all(torch.equal(before[name], buffer) for name, buffer in tiny_classifier.named_buffers())


@pytest.mark.parametrize("views", ["centre", "ten-crop"])
@pytest.mark.parametrize("settings", [{}, {"mean": "channel", "std": "channel"}, {"arch": "alexnet"}])
def test_a_checkpoints_metrics_are_those_of_pillow_and_numpy(
    tiny_recipe, tiny_dataset, tmp_path, views, settings
):
    torch.manual_seed(3)
    net = opinionated(new_classifier(replace(tiny_recipe, **settings), tiny_dataset))
    checkpoint.save(tmp_path / "net.pt", net)
    got = evaluate_checkpoints(World(), [tmp_path / "net.pt"], tiny_dataset.root, "val", views, 8)
    samples = stored(tiny_dataset)
    expected = probabilities_of(net, samples, views)
    top1, top5, loss = measured(expected, np.array([sample.label for sample in samples]))
    assert (got.split, got.views, got.classes, got.metrics.samples) == ("val", views, 10, len(samples))
    assert (got.metrics.top1, got.metrics.top5) == (pytest.approx(top1), pytest.approx(top5))
    assert got.metrics.loss == pytest.approx(loss, rel=1e-4)


def test_an_ensemble_of_different_preprocessing_averages_probabilities(tiny_recipe, tiny_dataset, tmp_path):
    nets, files = [], []
    for number, mean in enumerate(("image", "channel")):
        torch.manual_seed(number)
        nets.append(opinionated(new_classifier(replace(tiny_recipe, mean=mean), tiny_dataset)))
        files.append(tmp_path / f"{number}.pt")
        checkpoint.save(files[-1], nets[-1])
    got = evaluate_checkpoints(World(), files, tiny_dataset.root, "val", "centre", 8)
    samples = stored(tiny_dataset)
    expected = np.mean([probabilities_of(net, samples, "centre") for net in nets], axis=0)
    labels = np.array([sample.label for sample in samples])
    assert got.checkpoints == tuple(map(str, files))
    assert got.metrics.loss == pytest.approx(measured(expected, labels)[2], rel=1e-4)


def test_one_two_and_three_processes_see_every_sample_once_and_agree(tiny_recipe, tiny_dataset, tmp_path):
    torch.manual_seed(3)
    file = tmp_path / "net.pt"
    checkpoint.save(file, opinionated(new_classifier(tiny_recipe, tiny_dataset)))
    by_processes = {
        count: launch(Processes("cpu", count, ""), evaluate_everywhere, file, tiny_dataset.root)
        for count in (1, 2, 3)
    }
    samples = stored(tiny_dataset)
    weight = Answers(10, 64).weight.double().numpy()
    pixels = np.stack([crops(sample.pixels, 64, "centre")[0].ravel() for sample in samples])
    labels = np.array([sample.label for sample in samples])
    top1, top5, loss = measured(softmax(pixels.astype(np.float64) @ weight), labels)
    assert len({sample.key for sample in samples}) == tiny_dataset.samples("val")
    for count, (metrics, keys) in by_processes.items():
        assert sorted(keys) == sorted(sample.key for sample in samples), count
        assert metrics[0].samples == len(samples), count
        assert (metrics[0].top1, metrics[0].top5) == (pytest.approx(top1), pytest.approx(top5)), count
        assert metrics[0].loss == pytest.approx(loss, rel=1e-5), count
        assert {each.largest_class for each in metrics} == {np.bincount(labels).max() / len(labels)}, count
        for got, alone in zip(metrics, by_processes[1][0], strict=True):
            assert (got.samples, got.top1, got.top5) == (alone.samples, alone.top1, alone.top5), count
            assert got.loss == pytest.approx(alone.loss, rel=1e-5), count


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ("a", "b")}, r"2 classes.*has 10.*only in the checkpoint: a, b; only in the data: .* …"),
        ({"size": 256, "crop": 64}, "shorter side of 256 px.*has 72 px.*--size 256"),
    ],
)
def test_other_data_is_refused_naming_the_difference(tiny_classifier, tiny_dataset, tmp_path, change, words):
    other = Classifier(replace(tiny_classifier.spec, **change))
    checkpoint.save(tmp_path / "net.pt", other)
    with pytest.raises(UsageError, match=words):
        evaluate_checkpoints(World(), [tmp_path / "net.pt"], tiny_dataset.root, "val", "centre", 8)


def test_classes_in_another_order_are_refused(tiny_classifier, tiny_dataset, tmp_path):
    backwards = tuple(reversed(tiny_classifier.spec.classes))
    checkpoint.save(tmp_path / "net.pt", Classifier(replace(tiny_classifier.spec, classes=backwards)))
    with pytest.raises(UsageError, match="in another order"):
        evaluate_checkpoints(World(), [tmp_path / "net.pt"], tiny_dataset.root, "val", "centre", 8)


def test_an_ensemble_of_two_crops_is_refused(tiny_classifier, tiny_dataset, tmp_path):
    files = []
    for crop in (64, 70):
        files.append(tmp_path / f"{crop}.pt")
        checkpoint.save(files[-1], Classifier(replace(tiny_classifier.spec, crop=crop)))
    with pytest.raises(UsageError, match=r"70\.pt takes 70 px crops, but .*64\.pt takes 64"):
        evaluate_checkpoints(World(), files, tiny_dataset.root, "val", "centre", 8)


def test_a_missing_split_is_named(tiny_checkpoint, tiny_dataset):
    with pytest.raises(UsageError, match="no split 'test'"):
        evaluate_checkpoints(World(), [tiny_checkpoint], tiny_dataset.root, "test", "centre", 8)


def test_a_label_beyond_the_classes_is_named(tiny_classifier, tiny_dataset):
    few = replace(
        tiny_dataset, manifest=replace(tiny_dataset.manifest, classes=tiny_dataset.manifest.classes[:4])
    )
    with (
        Loader(few, "val", EvalView(crop=64), 30) as loader,
        pytest.raises(RunError, match=r"its label is \d, but the manifest names 4 classes"),
    ):
        evaluate([tiny_classifier], loader, World())
