"""Check shards by their checksums alone, without decoding them."""

from concurrent.futures import ThreadPoolExecutor

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.manifest import Shard
from pipeline.errors import RunError
from pipeline.host import usable_cores
from pipeline.progress import OnProgress, no_progress
from pipeline.storage.atomic import sha256_of


def verify_checksums(dataset: Dataset, on_progress: OnProgress = no_progress) -> None:
    """Compare every shard's SHA-256 with the manifest's; `pipeline.verify` also checks the shards' contents.

    Args:
        dataset: an opened dataset.
        on_progress: called after each shard with (bytes read, bytes in all).

    Raises:
        RunError: some shards differ; names up to three of them and their number.
    """
    shards = dataset.manifest.shards
    total, read = sum(shard.bytes for shard in shards), 0
    wrong = []

    def check(shard: Shard) -> tuple[Shard, bool]:
        with dataset.store.as_local_path(shard.name) as path:
            return shard, sha256_of(path) == shard.sha256

    with ThreadPoolExecutor(usable_cores()) as threads:
        for shard, same in threads.map(check, shards):
            read += shard.bytes
            if not same:
                wrong.append(shard.name)
            on_progress(read, total)
    if wrong:
        named = ", ".join(wrong[:3]) + (" …" if len(wrong) > 3 else "")
        raise RunError(
            f"{dataset.url}: {len(wrong)} of {len(shards)} shards do not match the manifest's checksums: "
            f"{named}; `alexnet-prep verify {dataset.url}` says what differs; prepare the dataset again or "
            "restore a copy"
        )
