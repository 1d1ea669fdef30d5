"""From the stream graph to frame programs, kernels' groups and the plan."""
