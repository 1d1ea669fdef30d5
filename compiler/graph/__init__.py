"""Loading and normalising ONNX models."""
