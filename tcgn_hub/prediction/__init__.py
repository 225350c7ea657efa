"""Prediction: weights in, a `Predictor` out, and what it says of patches and slides."""
