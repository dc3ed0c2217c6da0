from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import pytest
from folders import place
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.manifest import to_json
from pipeline.plan import Options, _shard_count, make_plan, read_plan, refuse_difference, versions
from pipeline.sources import ClassInfo, Sample, Source, read_class_folders


class Listed(Source):
    """A source without files."""

    def fingerprint(self):
        return "f" * 64


def source(train, val=0, classes=2):
    splits = {
        split: [Sample(f"{split}/{k}.jpg", k % classes, f"{split}{k}") for k in range(count)]
        for split, count in (("train", train), ("val", val))
        if count
    }
    infos = tuple(ClassInfo(f"c{k}", f"class {k}") for k in range(classes))
    return Listed(Path("nowhere"), "class-folders", infos, splits)


def order(plan, split="train"):
    return [sample.key for shard in plan.shards if shard.split == split for sample in shard.samples]


@given(st.integers(1, 400), st.integers(0, 150), st.none() | st.integers(1, 120), st.integers(0, 9))
def test_every_sample_is_in_exactly_one_shard_and_shards_are_even(train, val, per_shard, seed):
    listed = source(train, val)
    plan = make_plan(listed, Options(seed=seed, shard_samples=per_shard))
    for split, samples in listed.splits.items():
        shards = [shard for shard in plan.shards if shard.split == split]
        assert sorted(order(plan, split)) == sorted(sample.key for sample in samples)
        lengths = {len(shard.samples) for shard in shards}
        assert max(lengths) - min(lengths) <= 1
        assert min(lengths) >= 1
        assert max(lengths) <= (per_shard or 2000)
        assert [shard.name for shard in shards] == [f"{split}/{split}-{k:06d}" for k in range(len(shards))]


@pytest.mark.parametrize(
    ("samples", "per_shard", "count"),
    [
        (1, None, 1),
        (50, None, 1),
        (51, None, 2),
        (800, None, 16),
        (32_000, None, 16),
        (32_001, None, 17),
        (50_000, None, 25),
        (1_281_167, None, 641),
        (10, 3, 4),
        (9, 3, 3),
        (5, 100, 1),
    ],
)
def test_shard_counts(samples, per_shard, count):
    assert _shard_count(samples, per_shard) == count


def test_the_order_is_shuffled_by_the_seed_alone():
    first = order(make_plan(source(200), Options(seed=1)))
    assert order(make_plan(source(200), Options(seed=1, size=64, quality=50, shard_samples=7))) == first
    assert order(make_plan(source(200), Options(seed=2))) != first
    listed = source(200)
    listed.splits["train"].reverse()
    assert order(make_plan(listed, Options(seed=1))) == first
    # Shuffled: each half of the output draws from both halves of the input, 50 ± 7 (two sigma are 10).
    early = sum(int(key.removeprefix("train")) < 100 for key in first[:100])
    assert 35 <= early <= 65


def test_a_picture_more_leaves_the_order_of_the_others():
    longer = order(make_plan(source(201), Options()))
    assert [key for key in longer if key != "train200"] == order(make_plan(source(200), Options()))


def test_splits_are_shuffled_apart():
    listed = source(100, 100)
    listed.splits["val"] = [replace(s, key=s.key.replace("val", "train")) for s in listed.splits["val"]]
    plan = make_plan(listed, Options())
    assert order(plan, "train") != order(plan, "val")


@pytest.mark.parametrize(("classes", "width"), [(2, 4), (1000, 4), (10_000, 4), (10_001, 5), (100_001, 6)])
def test_label_width(classes, width):
    assert make_plan(source(2, classes=classes), Options()).label_width == width


def test_the_plan_carries_the_source_and_the_versions():
    plan = make_plan(source(3), Options(seed=5))
    assert (plan.layout, plan.fingerprint, plan.options.seed) == ("class-folders", "f" * 64, 5)
    assert plan.classes == (("c0", "class 0"), ("c1", "class 1"))
    assert plan.versions == versions()
    assert plan.versions["numpy"] == version("numpy")
    assert set(plan.versions) == {
        "alexnet-toolkit",
        "numpy",
        "opencv-python-headless",
        "pillow",
        "simplejpeg",
        "architecture",
    }


def test_a_stored_plan_reads_back(tmp_path):
    for name in ("ant/é 1.jpg", "bee/2.jpg"):
        place(tmp_path / "source" / name)
    plan = make_plan(read_class_folders(tmp_path / "source"), Options(val_fraction=0.1, max_megapixels=0.5))
    path = place(tmp_path / "plan.json", to_json(plan))
    assert read_plan(path) == plan


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff\xff", b'{"options": {"size": "big"}}'])
def test_a_damaged_plan_is_refused(tmp_path, data):
    with pytest.raises(UsageError, match=r"plan\.json: unreadable plan .*start again"):
        read_plan(place(tmp_path / "plan.json", data))


def refuse(wanted, options, fingerprint="f" * 64, found_versions=None):
    refuse_difference(wanted, asdict(options), fingerprint, found_versions or versions(), Path("out"))


def test_the_same_input_is_not_refused():
    refuse(make_plan(source(3), Options(seed=1)), Options(seed=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(size=64), "--size was 64, now 256"),
        (Options(keep_aspect=True), "--keep-aspect was True, now False"),
        (Options(quality=90), "--quality was 90, now 95"),
        (Options(val_fraction=0.1), "--val-fraction was 0.1, now None"),
        (Options(seed=3), "--seed was 3, now 0"),
        (Options(shard_samples=9), "--shard-samples was 9, now None"),
        (Options(max_megapixels=1.5), "--max-megapixels was 1.5, now 100.0"),
    ],
)
def test_each_option_that_differs_is_named(options, message):
    with pytest.raises(UsageError) as refused:
        refuse(make_plan(source(3), Options()), options)
    assert f"out holds output of another run: {message}; give the same" in str(refused.value)


def test_every_option_is_compared():
    assert len(asdict(Options())) == 7  # one row above for each


def test_source_and_versions_that_differ_are_named():
    plan = make_plan(source(3), Options())
    with pytest.raises(UsageError, match=r"the source's files differ \(names, labels or sizes\)"):
        refuse(plan, Options(), fingerprint="e" * 64)
    with pytest.raises(UsageError, match=r"numpy was 1\.0, now"):
        refuse(plan, Options(), found_versions=versions() | {"numpy": "1.0"})
    with pytest.raises(UsageError, match="--size was 1, now 256; --seed was 2, now 0; the source's"):
        refuse(plan, Options(size=1, seed=2), fingerprint="e" * 64)
