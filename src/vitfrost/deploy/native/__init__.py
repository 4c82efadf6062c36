"""The file of the native engine: integer codes as the engine maps them into memory, written from a quantized model."""
