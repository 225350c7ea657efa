"""Weights: the manifest that lists them, finding and verifying their files, and model directories.

Nothing else in the package touches a checksum.
"""
