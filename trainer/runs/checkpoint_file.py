"""Read checkpoint files, of this toolkit or another program, without running code from them."""

import argparse
import json
import pickle
import pickletools
import re
import shlex
import zipfile
import zlib
from itertools import dropwhile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import UsageError

# First bytes of torch's files: a zip archive, or, before torch 1.6, a pickled number.
_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9c"

# What a checkpoint may hold besides tensors and plain values. timm stores the command line's options as a
# Namespace, a class that only holds values. NumPy's functions and types build numbers and numeric arrays; its
# first version had them in another module.
_SCALAR, _ARRAY = np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]
_SAFE: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
    *((_SCALAR, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
    *((_ARRAY, f"{module}.multiarray._reconstruct") for module in ("numpy.core", "numpy._core")),
]
_FORBIDDEN = re.compile(r"GLOBAL (\S+) (?:was not|whose module)")


class DamagedError(UsageError):
    """A checkpoint file that is damaged or incomplete."""


def read_file(path: Path) -> Any:
    """Read a torch or safetensors file onto the CPU.

    Args:
        path: A file that `torch.save` wrote, in either of its formats, or one that ends in .safetensors.

    Returns:
        What was saved. Of safetensors, a dict of its tensors; in a file that this toolkit exported, they are
        in `model`, beside the metadata `format` and `spec`.

    Raises:
        UsageError: There is no such file, or reading it would run code, as of a whole pickled module; the
            message says how to get its state dict.
        DamagedError: The file is cut short, damaged, or of another kind.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint")
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
    safetensors = path.suffix == ".safetensors"
    if not safetensors and start[:4] != _ZIP and start != _LEGACY:
        size = f"{path.stat().st_size:,} bytes"
        raise _damaged(path, f"neither a torch file nor .safetensors: {size}, beginning with {start!r}")
    if start[:4] == _ZIP and not safetensors:
        _check_archive(path)
    try:
        return _read_safetensors(path) if safetensors else _read_torch(path)
    except Exception as error:  # torch raises many kinds of exceptions
        first = str(error).partition("\n")[0] or type(error).__name__
        if "TorchScript" in first:
            code = f"torch.jit.load({json.dumps(str(path))}).state_dict()"
            raise UsageError(f"{path}: a TorchScript archive; {_remedy(path, code)}") from error
        if found := _FORBIDDEN.search(str(error)):
            raise _forbidden(path, found[1]) from error
        if isinstance(error, EOFError | pickle.UnpicklingError) or "EOF" in first:
            first = "cut short, or damaged"  # torch's own words are on how to let the file run code
        raise _damaged(path, f"{first} ({path.stat().st_size:,} bytes)") from error


def _check_archive(path: Path) -> None:
    """Check the checksums of a torch (zip) file, which torch does not.

    Raises:
        DamagedError: The file is cut short, or an entry fails its checksum.
    """
    if not zipfile.is_zipfile(path):  # an archive's table of contents is at its end
        raise _damaged(path, f"cut short: its end is missing after {path.stat().st_size:,} bytes")
    try:
        with zipfile.ZipFile(path) as file:
            entry = file.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    if entry is not None:
        raise _damaged(path, f"its entry {entry} fails its checksum")


def _read_torch(path: Path) -> Any:
    with torch.serialization.safe_globals(_SAFE):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if "spec" not in metadata or "format" not in metadata:
        return tensors
    return {"format": int(metadata["format"]), "spec": json.loads(metadata["spec"]), "model": tensors}


def _damaged(path: Path, what: str) -> DamagedError:
    return DamagedError(f"{path}: not a readable checkpoint: {what}; copy or download it again")


def _forbidden(path: Path, name: str) -> UsageError:
    """Return the error for a file that holds an object of class or function `name`."""
    loaded = f"torch.load({json.dumps(str(path))}, weights_only=False)"
    key = _key_of_weights(path)
    if key is None:
        what, code = "a whole pickled module", f"{loaded}.state_dict()"
    else:
        what = "more than weights and plain values"
        state_dict = '(lambda w: getattr(w, "state_dict", lambda: w)())'  # of a module, or the dict itself
        code = f"{state_dict}({loaded}[{json.dumps(key)}])"
    return UsageError(
        f"{path}: holds {what} ({name}), which runs code when it is loaded; {_remedy(path, code)}"
    )


def _remedy(path: Path, code: str) -> str:
    """Say how to save a state dict alone, which the Python expression `code` returns."""
    save = f"import torch; torch.save({code}, {json.dumps(f'{path.stem}-state.pth')})"
    return (
        "if you trust it, save its state dict alone where its program is installed: "
        f"python -c {shlex.quote(save)}"
    )


def _key_of_weights(path: Path) -> str | None:
    """Return the key under which a torch file holds its weights, or None if it holds an object, not a dict.

    Reads the names in the file without building any object.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            opcodes = list(pickletools.genops(archive.read(name)))
    else:
        with path.open("rb") as file:
            for _ in range(4):  # a magic number, the version and the system come first
                opcodes = list(pickletools.genops(file))
    first, argument, _ = next(dropwhile(lambda op: op[0].name in ("PROTO", "FRAME"), opcodes))
    # The old format names a module's class in a tuple, which begins with a mark.
    if first.name == "MARK" or (first.name == "GLOBAL" and not str(argument).startswith("collections ")):
        return None
    known = ("state_dict", "model_state_dict", "model", "net")
    return next((argument for _, argument, _ in opcodes if argument in known), known[0])
