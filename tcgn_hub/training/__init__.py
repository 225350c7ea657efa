"""Fine-tuning: sections in, a model directory out that timm, the command line and the Hub all load."""
