"""Brings bundles to boards: over the user's own ssh, or over a serial line."""
