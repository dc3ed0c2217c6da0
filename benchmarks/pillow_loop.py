"""The usual preparation script, as a baseline: Pillow in a process pool and webdataset's ShardWriter.

    python benchmarks/pillow_loop.py SOURCE OUT --processes 2

SOURCE has CLASS/IMAGE files. Each of n processes converts every n-th image and writes its own shards. It does
no more than such scripts usually do: no check of the files, no statistics, no restart.
"""

import argparse
import io
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import webdataset
from PIL import Image


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("source", type=Path, help="folder with CLASS/IMAGE files")
    options.add_argument("out", type=Path, help="folder for the shards, which must not exist")
    options.add_argument("--size", type=int, default=256, help="side of the stored squares in pixels")
    options.add_argument("--quality", type=int, default=95, help="JPEG quality")
    options.add_argument("--processes", type=int, default=1, help="number of processes")
    options.add_argument("--shard-samples", type=int, default=2000, help="images per shard")
    given = options.parse_args()

    given.out.mkdir(parents=True)
    files = sorted(path for path in given.source.rglob("*") if path.is_file())
    labels = {name: label for label, name in enumerate(sorted({path.parent.name for path in files}))}
    shares = [files[number :: given.processes] for number in range(given.processes)]
    write = partial(
        write_shards,
        given.out,
        labels=labels,
        size=given.size,
        quality=given.quality,
        most=given.shard_samples,
    )
    with Pool(given.processes) as pool:
        pool.starmap(write, enumerate(shares))


def write_shards(
    out: Path, number: int, files: list[Path], labels: dict[str, int], size: int, quality: int, most: int
) -> None:
    """Write the shards of one process, of at most `most` images each."""
    pattern = str(out / f"part{number}-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=most, verbose=0) as writer:
        for path in files:
            jpeg = square(path, size, quality)
            writer.write({"__key__": path.stem, "jpg": jpeg, "cls": labels[path.parent.name]})


def square(path: Path, size: int, quality: int) -> bytes:
    """Read an image, scale its shorter side to `size`, crop the center square and return it as JPEG."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = size / min(image.size)
    image = image.resize((max(size, round(image.width * scale)), max(size, round(image.height * scale))))
    left, top = (image.width - size) // 2, (image.height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
