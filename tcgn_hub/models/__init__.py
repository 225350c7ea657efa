"""Architectures, one file each. Imports torch and timm, and nothing of this package but its errors."""

import timm  # noqa: F401  (first, for it makes the registry import the files of this folder, whole)
