"""How sure a prediction is: intervals from held-out sections, and whether a patch resembles the training tissue."""
