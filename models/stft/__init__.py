"""The short-time Fourier transform and its inverse as ONNX models, for models that work on spectra."""
