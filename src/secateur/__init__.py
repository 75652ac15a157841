"""Prune heads, channels and tokens of a trained model and ship it as ONNX and TensorRT."""
