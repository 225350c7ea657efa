"""Sphinx: `python -m sphinx -b html docs build/docs`."""

import tcgn_hub

project = "tcgn_hub"
author = "the tcgn_hub authors"
release = version = tcgn_hub.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
exclude_patterns = ["README.md"]
autodoc_typehints = "none"  # signatures have them
autodoc_member_order = "bysource"
myst_heading_anchors = 3
# docstrings name things of the package in single backticks, most of which have no page of their own
default_role = "code"
