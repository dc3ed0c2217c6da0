"""The classifier's preprocessing against NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import UsageError
from pipeline.dataset.manifest import ImageFormat
from trainer.models.classifier import Classifier, new_classifier, train_view


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64)).astype(np.float64)


def seen_by_model(classifier: Classifier, call, images: np.ndarray) -> np.ndarray:
    """Return the input of `classifier.model` while `call` runs on the images."""
    seen = []
    hook = classifier.model.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        call(torch.from_numpy(images).float())
    hook.remove()
    return seen[0].numpy()


def center_of_mean_image(dataset) -> np.ndarray:
    """Cut rows and columns 4..67 of 72 from the mean image, channels first."""
    return np.load(dataset.root / "mean_image.npy").astype(np.float64)[4:68, 4:68].transpose(2, 0, 1)


def deviation(dataset) -> np.ndarray:
    return np.sqrt(np.diag(np.array(dataset.statistics.covariance)))[:, None, None]


def test_mean_image_is_subtracted_in_the_scale_of_each_mode(tiny_recipe, tiny_dataset, pixels):
    recipe = replace(tiny_recipe, std="channel", color_noise="source")
    classifier = new_classifier(recipe, tiny_dataset)
    view = train_view(classifier, recipe, tiny_dataset, 0)
    assert view.noise.divisor == 1.1
    mean, std = center_of_mean_image(tiny_dataset), deviation(tiny_dataset)
    # The training graph divides by std and by the source's 1.1; forward does the same to the mean image.
    got = seen_by_model(classifier.train(), classifier, pixels / (std * 1.1))
    np.testing.assert_allclose(got, (pixels - mean) / (std * 1.1), rtol=1e-4, atol=1e-4)
    got = seen_by_model(classifier.eval(), classifier, pixels / std)
    np.testing.assert_allclose(got, (pixels - mean) / std, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mean", ["image", "channel"])
def test_float64_images_are_normalized_after_the_loader_which_only_adds_noise(
    tiny_recipe, tiny_dataset, pixels, mean
):
    recipe = replace(tiny_recipe, std="channel", color_noise="source", mean=mean)
    narrow, wide = (new_classifier(recipe, tiny_dataset).train() for _ in range(2))
    wide.to_float64()
    views = [train_view(one, recipe, tiny_dataset, 0) for one in (narrow, wide)]
    assert (views[1].mean, views[1].std, views[1].noise.divisor) == ((0.0,) * 3, (1.0,) * 3, 1.0)
    np.testing.assert_array_equal(views[1].noise.mixing, views[0].noise.mixing)
    subtracted = (
        center_of_mean_image(tiny_dataset)
        if mean == "image"
        else np.array(tiny_dataset.statistics.mean)[:, None, None]
    )
    expected = (pixels - subtracted) / (deviation(tiny_dataset) * 1.1)
    got = seen_by_model(wide, lambda images: wide(wide.inputs(images)), pixels)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    images = torch.from_numpy(pixels).float()
    assert narrow.inputs(images) is images


def test_without_std_and_noise_the_paper_subtracts_gray_levels(tiny_recipe, tiny_dataset, pixels):
    classifier = new_classifier(tiny_recipe, tiny_dataset)
    for mode in (classifier.train(), classifier.eval()):
        got = seen_by_model(mode, classifier, pixels)
        np.testing.assert_allclose(got, pixels - center_of_mean_image(tiny_dataset), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("std", ["none", "channel"])
def test_channel_mean_is_left_to_the_graph_in_training_and_done_in_classify(
    tiny_recipe, tiny_dataset, pixels, std
):
    recipe = replace(tiny_recipe, mean="channel", std=std)
    classifier = new_classifier(recipe, tiny_dataset)
    mean = np.array(tiny_dataset.statistics.mean)[:, None, None]
    divisor = deviation(tiny_dataset) if std == "channel" else 1.0
    view = train_view(classifier, recipe, tiny_dataset, 0)
    np.testing.assert_allclose(view.mean, mean.ravel())
    np.testing.assert_allclose(np.array(view.std) * np.ones(3), (divisor * np.ones((3, 1, 1))).ravel())
    np.testing.assert_array_equal(seen_by_model(classifier.train(), classifier, pixels), pixels)
    got = seen_by_model(classifier.eval(), classifier.classify, pixels)
    np.testing.assert_allclose(got, (pixels - mean) / divisor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("std", ["none", "channel"])
def test_classify_with_a_mean_image_is_the_manual_preprocessing(tiny_recipe, tiny_dataset, pixels, std):
    classifier = new_classifier(replace(tiny_recipe, std=std), tiny_dataset).eval()
    divisor = deviation(tiny_dataset) if std == "channel" else 1.0
    prepared = torch.from_numpy((pixels - center_of_mean_image(tiny_dataset)) / divisor).float()
    with torch.no_grad():
        expected = classifier.model(prepared)
        torch.testing.assert_close(
            classifier.classify(torch.from_numpy(pixels).float()), expected, rtol=1e-4, atol=1e-5
        )


def test_divisor_and_noise_follow_the_recipes_stages(tiny_recipe, tiny_dataset):
    from trainer.recipe import Stage

    recipe = replace(tiny_recipe, color_noise="source", stages=(Stage(epoch=2, color_noise="none"),))
    classifier = new_classifier(recipe, tiny_dataset)
    assert train_view(classifier, recipe, tiny_dataset, 1).noise is not None
    assert classifier.divisor == 1.1
    assert train_view(classifier, recipe, tiny_dataset, 2).noise is None
    assert classifier.divisor == 1.0


def test_spec_says_what_the_dataset_and_recipe_say(tiny_recipe, tiny_dataset):
    spec = new_classifier(tiny_recipe, tiny_dataset).spec
    assert (spec.arch, spec.width, spec.crop, spec.size) == ("alexnet_bn", 0.05, 64, 72)
    assert list(spec.classes) == tiny_dataset.classes
    assert (spec.mean, spec.std, spec.mean_image) == ((0.0,) * 3, (1.0,) * 3, True)


def test_only_the_mean_image_is_stored_beside_the_net(tiny_recipe, tiny_dataset):
    with_image = new_classifier(tiny_recipe, tiny_dataset)
    without = new_classifier(replace(tiny_recipe, mean="channel"), tiny_dataset)
    extra = set(with_image.state_dict()) - set(without.state_dict())
    assert extra == {"mean_image"}
    assert all(key.startswith("model.") for key in without.state_dict())


def test_a_dataset_without_mean_image_is_refused_in_words(tiny_recipe, tiny_dataset):
    aspect = ImageFormat(size=72, mode="aspect", quality=95)
    other = replace(tiny_dataset, manifest=replace(tiny_dataset.manifest, image=aspect))
    with pytest.raises(UsageError, match="mean=channel"):
        new_classifier(tiny_recipe, other)
    new_classifier(replace(tiny_recipe, mean="channel"), other)
