"""Every op in a few lines of plain PyTorch: its definition, the oracle of its tests, and its fallback."""
