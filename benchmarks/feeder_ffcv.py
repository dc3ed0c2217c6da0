"""Feeder for FFCV, run by benchmarks/loader.py in a separate environment.

It reads the same JPEGs from FFCV's own file format. Batches are uint8, NHWC, without mean subtraction and
color noise: FFCV's normalization of NCHW tensors on the CPU never returns.
"""

import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from feeder import AREA, CROP, RATIO, Order, read_images, read_order, serve
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip
from ffcv.writer import DatasetWriter
from PIL import Image


class StoredField(RGBImageField):
    """Image field that stores the given JPEG bytes; FFCV's own field would re-encode the image."""

    def encode(self, destination, jpeg, malloc):  # type: ignore[no-untyped-def]
        width, height = Image.open(io.BytesIO(jpeg)).size
        destination["mode"], destination["height"], destination["width"] = IMAGE_MODES["jpg"], height, width
        destination["data_ptr"], storage = malloc(len(jpeg))
        storage[:] = np.frombuffer(jpeg, np.uint8)


def main() -> None:
    serve(batches(read_order(__doc__)))


def batches(order: Order) -> Iterator[int]:
    """Yield the size of each batch of FFCV's loader.

    FFCV has no random crop of a fixed size: "paper" is a random-resized crop of the area (224/256)².
    """
    file = Path(order.data) / "stored.beton"
    if not file.exists():
        print("writing", file, file=sys.stderr)
        with tempfile.NamedTemporaryFile(dir=order.data, delete=False) as unfinished:
            pass
        fields = {"image": StoredField(), "label": IntField()}
        images = [(image, 0) for image in read_images(Path(order.data, "train"))]
        DatasetWriter(unfinished.name, fields, num_workers=1).from_indexed_dataset(images)
        Path(unfinished.name).rename(file)
    area, ratio = (AREA, RATIO) if order.augmentation != "paper" else (((CROP / 256) ** 2,) * 2, (1.0, 1.0))
    decoder = RandomResizedCropRGBImageDecoder((CROP, CROP), scale=area, ratio=ratio)
    loader = Loader(
        str(file),
        batch_size=order.batch,
        num_workers=order.threads,
        order=OrderOption.QUASI_RANDOM,
        drop_last=False,
        os_cache=True,
        custom_fields={"image": StoredField},
        pipelines={"image": [decoder, RandomHorizontalFlip()], "label": [IntDecoder()]},
    )
    while True:
        for images, _ in loader:
            assert np.asarray(images).dtype == np.uint8
            yield len(images)


if __name__ == "__main__":
    main()
