"""Predictions as files. Knows nothing of models."""
