"""Decoding of a Llama of 336 million random weights, beside other runtimes: ``python -m runnel.tools.decoding``."""
