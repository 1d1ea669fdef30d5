"""The ways a program can run, one module each; all serve the interface of ``runnel.runtime.program``."""
