"""What all stages share: how a stage is declared, the artifacts that flow between stages, and how one stage is run."""
