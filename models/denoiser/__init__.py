"""A speech denoiser, 16 kHz mono, wav in and wav out, trained on synthetic speech and noise."""
