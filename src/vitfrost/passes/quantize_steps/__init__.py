"""Steps of a quantizer, one class each. A step changes the chain's model and leaves it quantized; the chain measures what that did."""
