"""Language models: loading them, the built-in one, and a trained one together with its training examples."""
