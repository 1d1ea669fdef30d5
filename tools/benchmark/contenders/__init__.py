"""The runtimes that the bench compares, one file a package."""
