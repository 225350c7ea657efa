"""Arrays inside JSON, as base64."""

from __future__ import annotations

import base64

import numpy as np


def to_text(array: np.ndarray, dtype: str) -> str:
    """An array as base64 of values of a type, such as '<f4', row by row."""
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode()


def from_text(text: str, dtype: str) -> np.ndarray:
    """The values that `to_text` wrote, float32, shape (n,); a ValueError where the text is damaged."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype).astype(np.float32)
