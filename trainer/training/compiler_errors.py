"""Why torch.compile does not work on a machine, and what would help."""

import os
import re
import tempfile
from pathlib import Path

import torch

# Of torch's Triton, which compiles a C file for each GPU kernel.
_NO_C = "Failed to find C compiler"


def describe_compiler_error(error: BaseException) -> str:
    """Describe an error of torch.compile in one line of whole sentences, with the remedy where it is known.

    Args:
        error: What a compiled module's call raised.
    """
    text = str(error)
    if "InvalidCxxCompiler" in text:
        return _missing("CXX", "C++", "g++")
    if _NO_C in text:
        return _missing("CC", "C", "gcc")
    folders = {
        "torch is installed in": Path(torch.__file__).parent,
        "TMPDIR is": Path(tempfile.gettempdir()),
        "TORCHINDUCTOR_CACHE_DIR is": Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")),
    }
    for what, folder in folders.items():
        if len(str(folder).split()) > 1:
            return f"{what} {str(folder)!r}, and its compiler needs a path without spaces"
    return _first_sentences(text)


def _missing(variable: str, language: str, package: str) -> str:
    if chosen := os.environ.get(variable):
        return f"{variable}={chosen} is no working {language} compiler; correct or unset {variable}"
    return f"no {language} compiler on PATH; install the package {package}"


def _first_sentences(text: str) -> str:
    """Return a message's first paragraph and the compiler's own complaint, if any, without command lines."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]
    complaint = re.search(r"^.*\berror: .*$", text, re.MULTILINE)
    parts = [
        paragraphs[0],
        *([complaint[0].strip()] if complaint and complaint[0] not in paragraphs[0] else []),
    ]
    return ": ".join(parts)
