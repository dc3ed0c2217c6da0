from dataclasses import asdict, replace
from importlib.metadata import version

import pytest
from helpers.folders import place, refused
from hypothesis import given, settings, strategies as st

from pipeline.dataset.manifest import ClassInfo
from pipeline.dataset.work import versions
from pipeline.sharding.plan import (
    Options,
    _shard_count,
    agreed_plan,
    identity,
    make_plan,
    read_plan,
    read_shard_plan,
    refuse_difference,
    store_plan,
)
from pipeline.sources.base import UNKNOWN, Container, Sample, Source, SourceOptions
from pipeline.sources.detection import read_source
from pipeline.storage.open import open_store


def source(train, val=0, classes=2):
    splits = {
        split: [Sample(f"{split}/{k}.jpg", k % classes, f"{split}{k}") for k in range(count)]
        for split, count in (("train", train), ("val", val))
        if count
    }
    infos = tuple(ClassInfo(f"c{k}", f"class {k}") for k in range(classes))
    return Source("nowhere", "folders", infos, splits)


def order(planned, split="train"):
    _, shards = planned
    return [sample.key for shard in shards if shard.split == split for sample in shard.samples]


@settings(max_examples=30)
@given(st.integers(1, 400), st.integers(0, 150), st.none() | st.integers(1, 120), st.integers(0, 9))
def test_every_sample_is_in_exactly_one_shard_and_shards_are_even(train, val, per_shard, seed):
    listed = source(train, val)
    plan, all_shards = planned = make_plan(listed, Options(seed=seed, shard_samples=per_shard))
    assert [(s.name, s.split, s.samples) for s in plan.shards] == [
        (s.name, s.split, len(s.samples)) for s in all_shards
    ]
    assert plan.samples == train + val
    for split, samples in listed.splits.items():
        shards = [shard for shard in all_shards if shard.split == split]
        assert sorted(order(planned, split)) == sorted(sample.key for sample in samples)
        lengths = {len(shard.samples) for shard in shards}
        assert max(lengths) - min(lengths) <= 1
        assert min(lengths) >= 1
        assert max(lengths) <= (per_shard or 2000)
        assert [shard.name for shard in shards] == [f"{split}/{split}-{k:06d}" for k in range(len(shards))]


@pytest.mark.parametrize(
    ("samples", "per_shard", "count"),
    [(1, None, 1), (51, None, 2), (1_281_167, None, 641), (10, 3, 4), (9, 3, 3)],
)
def test_shard_counts(samples, per_shard, count):
    assert _shard_count(samples, per_shard) == count


def test_shards_of_original_files_are_bounded_in_bytes():
    listed = source(100)
    large = [Sample(s.path, s.label, s.key, 10_000_000) for s in listed.splits["train"]]
    listed.splits["train"] = large
    assert len(make_plan(listed, Options())[1]) == 2
    assert len(make_plan(listed, Options(keep_original=True))[1]) == 4  # of 250 MB
    assert len(make_plan(listed, Options(keep_original=True, shard_samples=100))[1]) == 1
    # The sizes of images in Parquet files are unknown, but those of the files are known.
    containers = (Container("train-0.parquet", 10**9),)
    rows = [Sample(s.path, s.label, s.key, UNKNOWN, 0, n) for n, s in enumerate(large)]
    packed = Source("nowhere", "parquet", listed.classes, {"train": rows}, containers)
    assert len(make_plan(packed, Options(keep_original=True))[1]) == 4


def test_the_order_is_shuffled_by_the_seed_alone():
    first = order(make_plan(source(200), Options(seed=1)))
    assert order(make_plan(source(200), Options(seed=1, size=64, quality=50, shard_samples=7))) == first
    assert order(make_plan(source(200), Options(seed=2))) != first
    listed = source(200)
    listed.splits["train"].reverse()
    assert order(make_plan(listed, Options(seed=1))) == first
    # About half of the first 100 samples come from the first half of the input: 50 ± 3.5 (one sigma).
    early = sum(int(key.removeprefix("train")) < 100 for key in first[:100])
    assert 35 <= early <= 65


def test_an_image_more_leaves_the_order_of_the_others():
    longer = order(make_plan(source(201), Options()))
    assert [key for key in longer if key != "train200"] == order(make_plan(source(200), Options()))


def test_splits_are_shuffled_apart():
    listed = source(100, 100)
    listed.splits["val"] = [
        Sample(s.path, s.label, s.key.replace("val", "train")) for s in listed.splits["val"]
    ]
    plan = make_plan(listed, Options())
    assert order(plan, "train") != order(plan, "val")


@pytest.mark.parametrize(("classes", "width"), [(2, 4), (10_000, 4), (10_001, 5), (100_001, 6)])
def test_label_width(classes, width):
    plan, _ = make_plan(source(2), Options())
    assert replace(plan, classes=(("id", "name"),) * classes).label_width == width


def test_the_plan_carries_the_source_and_the_versions():
    listed = source(3)
    plan, _ = make_plan(listed, Options(seed=5))
    assert (plan.layout, plan.fingerprint, plan.options.seed) == ("folders", listed.fingerprint(), 5)
    assert plan.classes == (("c0", "class 0"), ("c1", "class 1"))
    assert plan.versions == versions()
    names = {"alexnet-toolkit", "numpy", "opencv-python-headless", "pillow", "simplejpeg"}
    assert plan.versions.keys() == names | {"architecture"}
    assert all(plan.versions[name] == version(name) for name in names)


def test_a_stored_plan_reads_back(tmp_path):
    for name in ("ant/é 1.jpg", "bee/2.jpg"):
        place(tmp_path / "source" / name)
    listed = read_source(tmp_path / "source")
    plan, shards = make_plan(listed, Options(shard_samples=1, max_megapixels=0.5))
    out = open_store(tmp_path / "out")
    store_plan(out, plan, shards)
    assert read_plan(out) == plan
    assert [read_shard_plan(out, shard.name) for shard in plan.shards] == shards


def test_the_plan_is_written_after_its_shards(tmp_path, monkeypatch):
    out = open_store(tmp_path)
    written = []
    monkeypatch.setattr(out, "write", lambda name, data: written.append(name))
    store_plan(out, *make_plan(source(3, 2), Options(shard_samples=1)))
    assert len(written) == 7
    assert written[-1] == ".work/plan.json"


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff\xff", b'{"options": {"size": "big"}}'])
def test_a_damaged_plan_is_refused(tmp_path, data):
    out = open_store(tmp_path)
    place(tmp_path / ".work" / "plan.json", data)
    refused(lambda: read_plan(out), ".work/plan.json: unreadable plan ")
    refused(lambda: read_shard_plan(out, "train/train-000000"), "train-000000.json: unreadable plan")


@pytest.mark.parametrize(
    ("file", "good", "bad"),
    [
        ("plan.json", "train/train-000001", "../train-000001"),
        ("plan.json", "train/train-000001", "/tmp/train-000001"),
        ("plan.json", "a.parquet", "../a.parquet"),
        ("plan/train-000000.json", "train/1.jpg", "train/../../1.jpg"),
        ("plan/train-000000.json", "train/train-000000", "train/../train-000000"),
    ],
)
def test_a_plan_that_leads_out_of_its_folders_is_refused(tmp_path, file, good, bad):
    out = open_store(tmp_path)
    listed = replace(source(2), containers=(Container("a.parquet", 5),))
    store_plan(out, *make_plan(listed, Options(shard_samples=1, seed=1)))
    names = [shard.name for shard in read_plan(out).shards]
    path = tmp_path / ".work" / file
    changed = path.read_text().replace(good, bad)
    assert changed != path.read_text()
    path.write_text(changed)
    refused(lambda: [read_plan(out), *(read_shard_plan(out, name) for name in names)], file, bad)


def test_a_stored_plan_is_kept_for_the_same_input(tmp_path):
    out = open_store(tmp_path)
    stored = agreed_plan(out, source(3), Options(seed=1))
    moved = Source("elsewhere", "images", source(3).classes, source(3).splits)
    assert agreed_plan(out, moved, Options(seed=1)) == stored == read_plan(out)


OTHERS = {
    "size": (64, "--size was 256, now 64"),
    "keep_aspect": (True, "--keep-aspect was False, now True"),
    "quality": (90, "--quality was 95, now 90"),
    "seed": (3, "--seed was 0, now 3"),
    "shard_samples": (9, "--shard-samples was None, now 9"),
    "max_megapixels": (1.5, "--max-megapixels was 100.0, now 1.5"),
    "exif_rotate": (True, "--exif-rotate was False, now True"),
    "drop_duplicates": (True, "--drop-duplicates was False, now True"),
    "keep_original": (True, "--keep-original was False, now True"),
}


@pytest.mark.parametrize("name", asdict(Options()))
def test_each_option_that_differs_is_named(name, tmp_path):
    value, message = OTHERS[name]
    out = open_store(tmp_path)
    agreed_plan(out, source(3), Options())
    refused(lambda: agreed_plan(out, source(3), Options(**{name: value})), str(tmp_path), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "images"}, "--layout was auto, now images"),
        ({"classes": ("a", "b")}, "--classes was None, now 2 classes ("),
        ({"val_fraction": 0.5}, "--val-fraction was None, now 0.5"),
    ],
)
def test_another_way_to_read_the_source_is_named(options, message, tmp_path):
    out = open_store(tmp_path)
    agreed_plan(out, source(3), Options())
    other = replace(source(3), options=SourceOptions(**options))
    refused(lambda: agreed_plan(out, other, Options()), message)


def test_all_that_differs_is_named(tmp_path):
    wanted = identity(make_plan(source(3), Options())[0])
    found = wanted | {"size": 1, "seed": 2, "fingerprint": "e" * 64, "numpy": "1.0"}
    parts = ("--size was 1, now 256; --seed was 2, now 0; the source's ", "; numpy was 1.0, now")
    refused(lambda: refuse_difference(wanted, found, open_store(tmp_path)), *parts)


def test_two_ways_of_keeping_more_exclude_each_other():
    refused(lambda: Options(keep_aspect=True, keep_original=True), "--keep-aspect", "--keep-original")
