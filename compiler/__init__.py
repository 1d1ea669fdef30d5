"""The laptop's half: reads offline models, rewrites them as streams, compiles them for a target."""
