"""Attention over time: found in the graph, and its mask measured on several lengths."""
