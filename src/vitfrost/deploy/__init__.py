"""From a model or an artifact to a graph that runs without torch: ONNX or OpenVINO in fp32, bf16 or int8, or our own engine's file."""
