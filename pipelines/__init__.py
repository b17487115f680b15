"""The pipelines: their graphs, how they are compiled, and how they run on this machine."""
