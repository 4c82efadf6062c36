"""Training: images decoded once, augmented on the device, in an order that seeds alone decide."""
