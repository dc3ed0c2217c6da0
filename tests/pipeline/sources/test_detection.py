import subprocess
import sys

import pytest
from helpers.buckets import upload
from helpers.folders import flat, is_root, place, refused
from helpers.imagenet_files import contents, in_tree
from helpers.source_layouts import write_layout

from pipeline.sources.detection import read_source

pytestmark = pytest.mark.usefixtures("scipy_once")


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "it does not exist"), ("train.7z", "it is a file"), ("cat.jpg", "it is one image")],
)
def test_a_source_that_is_no_folder(tmp_path, name, message):
    for file in ("train.7z", "cat.jpg"):
        place(tmp_path / file)
    refused(lambda: read_source(tmp_path / name), f"source {tmp_path / name}: {message}")


@pytest.mark.parametrize("name", ["folders", "kaggle", "archives", "images.zip", "parquet", "webdataset"])
def test_a_bucket_holds_the_same_as_the_folder(tree, s3, tmp_path, name):
    root = write_layout(name, tmp_path / "source", tree)
    upload(root, f"{s3}/some/prefix")
    here, there = read_source(root), read_source(f"{s3}/some/prefix/")
    assert (there.layout, there.splits, there.classes) == (here.layout, here.splits, here.classes)
    assert (there.containers, there.fingerprint()) == (here.containers, here.fingerprint())
    assert there.left_out.rows() == here.left_out.rows()
    assert contents(there, tmp_path / "spool") == in_tree(tree)


@pytest.mark.skipif(is_root(), reason="root may read anything")
def test_an_unreadable_archive(tmp_path):
    place(flat(tmp_path, ant=1, bee=1) / "ILSVRC2012_img_train.tar").chmod(0)
    refused(lambda: read_source(tmp_path), "check its permissions")


def test_class_folders_need_none_of_the_heavy_libraries(tmp_path):
    flat(tmp_path, ant=1, bee=1)
    code = (
        "import sys; from pipeline import read_source; read_source(sys.argv[1]); "
        "print(*{'scipy', 'pyarrow', 'fsspec', 'torch', 'webdataset'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
