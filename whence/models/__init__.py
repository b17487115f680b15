"""Language models: loading them, the built-in one, and a trained one together with its training examples."""

BASE = "lineage/base"  # in a fine-tuned model's folder: what it was trained from
