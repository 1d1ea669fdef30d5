"""Searches schedules of products by measuring them, here or on a board, and keeps what it found."""
