"""Whether attribution can be trusted: a small module per measure, none of which believes the scores."""
