"""From an entry of the manifest to a file whose sha256 has been checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tcgn_hub.errors import WeightsError
from tcgn_hub.weights.manifest import Weights

__all__ = ["resolve", "sha256_of"]


def resolve(weights: Weights) -> Path:
    """The verified file of parameters of a set of weights.

    Raises:
        WeightsError: The file is missing, or not what the manifest says.
    """
    wanted = weights.model_file
    if not weights.bundled:
        raise WeightsError(f"The weights {weights.tag} are not part of this package.")
    path = weights.folder / wanted.name
    if not path.is_file():
        raise WeightsError(f"{path} of {weights.tag} is missing; install the package again.")
    if path.stat().st_size != wanted.size or sha256_of(path) != wanted.sha256:
        raise WeightsError(
            f"{path} is not the file the manifest lists for {weights.tag} (its sha256 differs);"
            " install the package again."
        )
    return path


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
