"""A wide decoder of English text whose feed-forward layers are mostly idle, for weights that are read when needed."""
