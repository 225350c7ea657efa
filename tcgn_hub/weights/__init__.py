"""Weights: the manifest that lists them, finding, verifying, importing and publishing their files.

Nothing else in the package touches a checksum or the network.
"""
