"""The embedded default: handwritten digits, a small ViT trained on them, and a demonstration of the whole path."""
