"""Finding weights by what users name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tcgn_hub.weights.manifest import load_manifest

__all__ = ["locate"]


def locate(weights: str | Path | None) -> dict[str, Any]:
    """What `tcgn_hub.load` is to be given for it: a tag of the manifest is a tag whatever lies around."""
    if weights is None:
        return {}
    if isinstance(weights, str):
        tags = load_manifest()
        if weights.startswith("hf-hub:") or weights in tags or weights in {tag.split(".")[0] for tag in tags}:
            return {"tag": weights}
    return {"path": weights}
