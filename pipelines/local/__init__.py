"""A pipeline run on this machine: progress, log, artifacts."""
