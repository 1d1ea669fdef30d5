"""The signal's format, shared by the network, the export and the data; needs nothing but Python."""

SAMPLE_RATE = 16000
WINDOW = 512
HOP = 256
BINS = WINDOW // 2 + 1
