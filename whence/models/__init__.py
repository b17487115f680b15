"""Language models: loading them, the built-in one, and a trained one together with its training examples."""

# In a fine-tuned model's folder
LINEAGE = "lineage"  # what every artifact carries of its origin
BASE = f"{LINEAGE}/base"  # what it was trained from
CARD_FILES = ("README.md", "model_card.json")
