"""Decoders that keep a past: which input is what, and the model as one that reads a whole sequence."""
