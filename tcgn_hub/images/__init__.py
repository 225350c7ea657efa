"""Slides and pictures: their scale, tissue, tiles, and the way from pixels to model input. Knows no genes."""
