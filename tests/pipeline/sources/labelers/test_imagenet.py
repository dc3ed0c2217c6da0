import pytest
from helpers.folders import is_root, place, refused
from hypothesis import given, settings, strategies as st

from pipeline.errors import UsageError
from pipeline.sources.labelers.imagenet import has_labels, read_labels, read_mapping, read_solution
from pipeline.storage.open import open_store

HEADER = b"ImageId,PredictionString\n"


def mapping(folder, data):
    return read_mapping(open_store(place(folder / "m.txt", data).parent), "m.txt")


def solution(folder, data):
    return read_solution(open_store(place(folder / "s.csv", data).parent), "s.csv")


# Class names


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (
            b"\xef\xbb\xbfn01440764 tench\r\n\r\nn01443537  goldfish ",
            {"n01440764": "tench", "n01443537": "goldfish"},
        ),
        (b"n01440764\nant Ameise \xc3\xa4", {"n01440764": "n01440764", "ant": "Ameise ä"}),
    ],
)
def test_names_of_a_mapping_file(tmp_path, data, names):
    assert mapping(tmp_path, data) == names


def test_the_real_mapping_file(shared_data):
    names = read_mapping(open_store(shared_data / "imagenet-meta"), "LOC_synset_mapping.txt")
    assert len(names) == 1000
    assert names["n02105855"] == "Shetland sheepdog, Shetland sheep dog, Shetland"
    assert list(names) == sorted(names)


def test_bad_mapping_files(tmp_path):
    refused(lambda: mapping(tmp_path, b"a one\na two\n"), "m.txt: line 2 names a a second time;")
    refused(lambda: mapping(tmp_path, b"a \xff\n"), f"{tmp_path}/m.txt: not UTF-8 text (byte 2);")


# Kaggle's labels


def test_labels_of_a_csv(tmp_path):
    rows = b"v1,n01440764 85 1 499 272 n01440764 3 4 5 6 \r\n\r\nv2,n01443537\nv1,n01440764 \n"
    for data in (HEADER + rows, b"\xef\xbb\xbf" + HEADER + rows):
        assert solution(tmp_path, data) == {"v1": "n01440764", "v2": "n01443537"}


def test_the_real_csv(shared_data):
    table = read_solution(open_store(shared_data / "imagenet-meta"), "LOC_val_solution.csv")
    assert len(table) == 50_000
    tree = shared_data / "imagenet-sample" / "val"
    found = {path.stem: path.parent.name for path in tree.glob("*/*")}
    assert found
    assert {stem: table[stem] for stem in found} == found


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "its first line is not ImageId,PredictionString;"),
        (HEADER + b"v1,n01440764\nv2,n0144\n", "line 3 is not an image, a comma and a WNID"),
        (HEADER + b"v1,n01440764,5\n", "line 2 is not an image, a comma and a WNID"),
        (HEADER + b'v1,"n01440764\n', "line 2 is no CSV: unexpected end of data;"),
        (HEADER + b"v1,n01440764\nv1,n01443537\n", "line 3 gives v1 another class;"),
        (HEADER + b"\xff\n", "not UTF-8 text (byte 25);"),
    ],
)
def test_bad_csv_files(tmp_path, data, message):
    refused(lambda: solution(tmp_path, data), f"{tmp_path}/s.csv: {message}")


def test_a_file_that_is_far_too_large(tmp_path):
    with (tmp_path / "s.csv").open("wb") as file:
        file.truncate(2**40)
    message = "s.csv: 1,099,511,627,776 bytes are too many for a label file;"
    refused(lambda: read_solution(open_store(tmp_path), "s.csv"), message)


@pytest.mark.skipif(is_root(), reason="root may read anything")
def test_an_unreadable_file(tmp_path):
    place(tmp_path / "m.txt").chmod(0)
    message = f"cannot read {tmp_path}/m.txt: Permission denied;"
    refused(lambda: read_mapping(open_store(tmp_path), "m.txt"), message)


@settings(max_examples=30)
@given(st.binary(max_size=200), st.sampled_from([b"", HEADER]), st.sampled_from([mapping, solution]))
def test_any_bytes_are_a_table_or_one_line(tmp_path_factory, data, header, function):
    try:
        function(tmp_path_factory.getbasetemp(), header + data)
    except UsageError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


# All of a source's label files


def test_of_each_kind_the_first_that_is_found(tmp_path):
    place(tmp_path / "a" / "LOC_synset_mapping.txt", b"n01440764 inner")
    place(tmp_path / "LOC_synset_mapping.txt", b"n01440764 outer")
    place(tmp_path / "LOC_val_solution.csv", HEADER + b"v1,n01440764")

    def read(folders, *stems):
        return read_labels(open_store(tmp_path), folders, "train", [], "val", stems)

    assert read(["a/b", "a", ""], "v1", "v1") == ({"n01440764": "inner"}, ["n01440764"] * 2)
    assert read(["", "a"]) == ({"n01440764": "outer"}, [])
    refused(lambda: read(["a"], "v1"), "no labels for its 1 images, such as v1; put ILSVRC2012_devkit")
    refused(lambda: read([""], "v1", "v2"), "LOC_val_solution.csv does not match val: 1 of 2 images")


def test_whether_there_are_labels(tmp_path):
    store = open_store(tmp_path)
    assert not has_labels(store)
    place(tmp_path / "LOC_synset_mapping.txt")
    assert not has_labels(store)
    place(tmp_path / "below" / "LOC_val_solution.csv")
    assert has_labels(store, "below")
    assert not has_labels(store)
    place(tmp_path / "ILSVRC2012_devkit_t12.tar.gz")
    assert has_labels(store)
