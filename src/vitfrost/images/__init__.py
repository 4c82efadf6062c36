"""Images and labels: found in folders, drawn with a seed, decoded in the background, handed out in fixed batches."""
