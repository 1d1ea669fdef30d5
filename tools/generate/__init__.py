"""Text from a decoder: tokens, sampling, sessions, and the server of them."""
