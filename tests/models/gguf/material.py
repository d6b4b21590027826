"""The real checkpoints, where they are present, and files that are changed."""

import os
from pathlib import Path

import numpy as np
import pytest

from handscroll.base.gguf import read_gguf

REAL = Path(os.environ.get("HANDSCROLL_REAL", Path.home() / ".cache" / "handscroll-real"))
FILES = {
    "gemma3_text": "gemma-3-270m-q4_k_m.gguf",
    "qwen2": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
}


def real(family: str) -> Path:
    path = REAL / FILES[family]
    if not path.exists():
        pytest.skip(f"the real checkpoint is absent: {path} (python ../shared/models/fetch.py)")
    return path


def changed(path, file, metadata=None, without=(), tensors=None):
    """The same file with other keys or tensors, by the gguf library."""
    import gguf

    from handscroll.models.gguf.save import _add

    read = gguf.GGUFReader(file)
    kept = read_gguf(file).metadata | (metadata or {})
    writer = gguf.GGUFWriter(path, kept.pop("general.architecture"))
    for key, value in kept.items():
        if key not in without:
            _add(writer, key, value)
    held = {tensor.name: tensor for tensor in read.tensors}
    for name, tensor in held.items():
        if name not in without:
            writer.add_tensor(name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for name, numbers in (tensors or {}).items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
