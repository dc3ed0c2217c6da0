"""One batch again and again, in place of the data: to try a trainer, not to train."""

from collections.abc import Iterator

import torch

from pipeline.loader.loader import Batch
from trainer.distributed.env import World
from trainer.recipe import Recipe


class OneBatch:
    """Epochs of a single batch, as long as the data's.

    Attributes:
        epoch: the epoch, counted from 0, that the next iteration gives.
        batch: batches of it given so far.
    """

    def __init__(self, batch: Batch, length: int) -> None:
        self._one, self._length = batch, length
        self.epoch = self.batch = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batch, `len` times."""
        for number in range(self._length):
            self.batch = number + 1
            yield self._one
        self.epoch, self.batch = self.epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch."""
        self.epoch, self.batch = epoch, 0


def noise(recipe: Recipe, batch_size: int, classes: int, world: World) -> Batch:
    """Pictures of grey levels' spread without any content, and labels to match."""
    generator = torch.Generator().manual_seed(recipe.seed + world.rank)
    images = torch.randn(batch_size, 3, recipe.crop, recipe.crop, generator=generator)
    images = images if recipe.std == "channel" else images.mul_(64.0)  # some deviation of ImageNet's pixels
    if recipe.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images.to(world.device), torch.randint(classes, (batch_size,), generator=generator), [])
