import subprocess
import sys

import pytest
from helpers.folders import flat, is_root, place, refused

from pipeline.sources.detection import LAYOUTS, read_source


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "it does not exist"), ("train.zip", "it is a file")]
)
def test_a_source_that_is_no_folder(tmp_path, name, message):
    place(tmp_path / "train.zip")
    refused(lambda: read_source(tmp_path / name), f"source {tmp_path / name}: {message}")


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "folders"])
def test_a_layout_that_is_not_there(tmp_path, layout):
    refused(lambda: read_source(flat(tmp_path, ant=1, bee=1), layout), str(tmp_path))


def test_a_layout_that_is_unknown(tmp_path):
    refused(lambda: read_source(tmp_path, "os"), "layout is 'os'; did you mean")


def test_the_options_of_the_validation_split_are_passed_on(tmp_path):
    source = read_source(flat(tmp_path, ant=20, bee=20), "folders", 0.25, 3)
    again = read_source(tmp_path, val_fraction=0.25, seed=4)
    assert [len(source.splits[split]) for split in ("train", "val")] == [30, 10]
    assert source.splits["val"] != again.splits["val"]


@pytest.mark.skipif(is_root(), reason="root may read anything")
def test_an_unreadable_archive(tmp_path):
    place(flat(tmp_path, ant=1, bee=1) / "ILSVRC2012_img_train.tar").chmod(0)
    refused(lambda: read_source(tmp_path), "check its permissions")


def test_class_folders_need_none_of_the_heavy_libraries(tmp_path):
    flat(tmp_path, ant=1, bee=1)
    code = (
        "import sys; from pipeline import read_source; read_source(sys.argv[1]); "
        "print(*{'scipy', 'pyarrow', 'fsspec', 'torch'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
