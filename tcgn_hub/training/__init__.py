"""Training: sections and a recipe in, a model directory out that timm, the command line and the Hub all load."""
