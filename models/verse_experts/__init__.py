"""A decoder of English text with mixtures of experts, for experts that are read when they are chosen."""
