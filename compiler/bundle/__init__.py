"""The .rnl writer."""
