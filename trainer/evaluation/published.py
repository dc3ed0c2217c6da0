"""Published results on ImageNet's validation pictures, to put a net's own beside."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

# SHA-256 of ILSVRC 2012's 1,000 WNIDs, sorted and joined by newlines.
_WNIDS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
_PICTURES = 50_000


@dataclass(frozen=True)
class Published:
    """A published result: errors are shares of the 50,000 validation pictures, 0..1."""

    name: str
    source: str
    views: str
    top1_error: float
    top5_error: float


RESULTS = (
    # Krizhevsky et al. 2012, table 2. Its other rows are of nets trained on more than ILSVRC 2012.
    Published("AlexNet, one net", "the 2012 paper, table 2", "ten-crop", 0.407, 0.182),
    Published("AlexNet, five nets", "the 2012 paper, table 2", "ten-crop", 0.381, 0.164),
    Published("AlexNet, the code's own run", "the log of the released code", "ten-crop", 0.40664, 0.18210),
    # 56.522 % and 79.066 % are right, as torchvision documents AlexNet_Weights.IMAGENET1K_V1.
    Published("torchvision's alexnet", "torchvision's documentation", "centre", 0.43478, 0.20934),
)


def is_imagenet_validation(class_ids: Iterable[str], pictures: int) -> bool:
    """Whether a split is ILSVRC 2012's validation set, by its classes' WNIDs and its size."""
    joined = "\n".join(sorted(class_ids)).encode()
    return pictures == _PICTURES and hashlib.sha256(joined).hexdigest() == _WNIDS
