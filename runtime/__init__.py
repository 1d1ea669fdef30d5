"""The board's half: reads bundles and runs them as streams. Needs numpy alone: no compiler, no ONNX, no TVM."""
