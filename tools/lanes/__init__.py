"""Which kernels of a bundle handle elements one at a time: ``python -m runnel.tools.lanes``."""
