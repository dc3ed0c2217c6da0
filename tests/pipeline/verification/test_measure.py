"""Statistics of the stored images, compared with NumPy's over the pixels that Pillow decodes."""

import numpy as np
import pytest
from helpers.folders import draw_image, overwrite, place
from helpers.inline import INLINE
from helpers.reference import stored
from helpers.synthetic import tiny_images, write_dataset
from PIL import Image

from pipeline import Dataset, LocalExecutor, Options, prepare, read_source
from pipeline.dataset.index import read_index
from pipeline.errors import RunError, UsageError
from pipeline.verification.measure import decoded_statistics


def numpy_statistics(images):
    """Return mean and population covariance over all pixels, in float64."""
    flat = np.concatenate([p.reshape(-1, 3) for p in images]).astype(np.float64)
    return flat.mean(axis=0), np.cov(flat.T, bias=True)


def test_numpy_agrees_and_validation_images_do_not_count(tiny_dataset):
    found = decoded_statistics(tiny_dataset, INLINE)
    mean, covariance = numpy_statistics([sample.pixels for sample in stored(tiny_dataset, "train")])
    assert found.measured_on == "decoded"
    assert found.pixels == 90 * 72 * 72
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-10)


def test_several_workers_give_the_same_bits_and_all_progress(tmp_path):
    data = write_dataset(tmp_path / "d", {"train": tiny_images(23)}, 16, shards=4)
    calls = []
    found = decoded_statistics(data, LocalExecutor(2), lambda *counts: calls.append(counts))
    assert found == decoded_statistics(data, INLINE)
    assert calls[-1] == (23, 23)
    assert all(0 <= done <= total == 23 for done, total in calls)


def test_images_of_their_original_size_count_as_they_are_loaded(tmp_path):
    """Large and small images have the same weight, and aspect ratios are kept."""
    images = [draw_image(1, 300, 400), draw_image(2, 30, 40), draw_image(3, 64, 48)]
    data = write_dataset(tmp_path / "d", {"train": images}, 60, shards=1, mode="original")
    found = decoded_statistics(data, INLINE)
    assert found.pixels == 60 * 80 * 3
    reference = [
        np.asarray(Image.fromarray(sample.pixels).resize(shape, Image.Resampling.BOX))
        for sample, shape in zip(stored(data, "train"), [(80, 60), (80, 60), (60, 80)], strict=True)
    ]
    mean, covariance = numpy_statistics(reference)
    np.testing.assert_allclose(found.mean, mean, atol=0.3)  # small images are enlarged with another filter
    np.testing.assert_allclose(found.covariance, covariance, rtol=0.05, atol=15)


def test_decoded_and_source_statistics_are_close_on_photographs(shared_data, tmp_path):
    """Encoding at quality 95 changes the mean only by rounding, and loses fine color.

    Measured on all images of this sample and on `clothing`: means move by at most 0.026 gray levels; the
    deviation along the first direction, brightness, grows by 0.2 %; along the other two, which are color, it
    shrinks by 0.6 to 1.7 %, because 4:2:0 keeps one chroma value for four pixels; directions turn by 0.03
    degrees (cosines of 0.9999998). The bounds are about twice that.
    """
    for path in sorted((shared_data / "imagenet-sample" / "train").rglob("*.JPEG"))[::5]:
        place(tmp_path / "source" / "train" / path.parent.name / path.name, path.read_bytes())
    source = read_source(tmp_path / "source")
    before = prepare(source, tmp_path / "d", Options(size=256), executor=INLINE).statistics
    after = decoded_statistics(Dataset.open(tmp_path / "d"), INLINE)
    assert (before.measured_on, after.measured_on) == ("source", "decoded")
    assert after.pixels == before.pixels
    assert np.abs(np.subtract(after.mean, before.mean)).max() < 0.06
    changes = after.deviations / before.deviations - 1
    assert abs(changes[0]) < 0.005
    assert (changes[1:] < 0).all()
    assert (changes[1:] > -0.035).all()
    cosines = (np.array(after.eigenvectors) * np.array(before.eigenvectors)).sum(axis=1)
    assert cosines.min() > 0.999999


def test_a_damaged_image_and_a_damaged_index_are_one_line_that_names_them(tmp_path):
    data = write_dataset(tmp_path / "d", {"train": tiny_images(6)}, 16, shards=2)
    tar = data.tars("train")[1]
    index = read_index(data.store, data.shards("train")[1])
    name, at, size = index.keys[1], index.image_offsets[1], index.image_sizes[1]
    overwrite(tar, at + size // 2, bytes(size - size // 2))
    with pytest.raises(RunError, match=rf"train-000001\.tar: {name} does not decode .*alexnet-prep verify"):
        decoded_statistics(data, INLINE)
    data.indexes("train")[0].write_text("v1.2 9\n")
    with pytest.raises(UsageError, match=r"train-000000\.idx: not a complete v1\.2 index"):
        decoded_statistics(data, INLINE)


def test_no_training_split(tmp_path):
    data = write_dataset(tmp_path / "d", {"train": tiny_images(4), "val": tiny_images(4)}, 16)
    del data.manifest.splits["train"]
    with pytest.raises(
        UsageError, match="has no split 'train', only val; name a dataset with training images"
    ):
        decoded_statistics(data, INLINE)
