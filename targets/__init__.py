"""Boards and chips: one TOML each, and the loader."""
