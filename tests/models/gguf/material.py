"""The real checkpoints, where they are present."""

import os
from pathlib import Path

import pytest

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
