"""verse: a small decoder of English text, for bounded KV caches and weights from flash."""
