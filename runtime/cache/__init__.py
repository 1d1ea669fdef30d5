"""Caches of keys and values of a stream: what it chooses, and what they hold (docs/kv.md)."""
