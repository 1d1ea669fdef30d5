"""The three networks of the StreamiNNC paper, made anew with weights of our own."""
