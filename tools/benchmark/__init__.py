"""``make bench``: steps of ours and of other runtimes on the same models, inputs and core, in turns."""
