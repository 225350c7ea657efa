"""From files to tensors: scale, transforms, panels and sections. Knows nothing of models."""
