"""Sources and sinks of samples, named by URI."""
