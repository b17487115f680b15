"""The artifacts that flow between the stages, and the file names inside their folders."""

from __future__ import annotations

from whence.running.declaration import Artifact, Kind

BASE_MODEL = Artifact("base_model", Kind.MODEL, "The base model, or the reference to it.")
TRAIN_DATA = Artifact("train_data", Kind.DATASET, "The training examples.")
EVAL_DATA = Artifact("eval_data", Kind.DATASET, "The held-out examples.")
MODEL = Artifact("model", Kind.MODEL, "The fine-tuned model.")
LOSS_CURVE = Artifact("loss_curve", Kind.HTML, "Training and evaluation loss over the steps, as a page.")
GENERATIONS = Artifact("generations", Kind.DATASET, "The answers of both models to the prompts and the held-out rows.")
BENCHMARK = Artifact("benchmark", Kind.METRICS, "Accuracies and predictions of the multiple-choice benchmark.")
FACTORS = Artifact("factors", Kind.ARTIFACT, "The influence factors of the fine-tuned model, in kronfluence's layout.")
SPECTRA = Artifact("spectra", Kind.ARTIFACT, "The factors' spectra: a table of all modules, and plots as PNG files.")
SPECTRA_PAGE = Artifact("spectra_page", Kind.HTML, "The same as a page.")
SCORES = Artifact("scores", Kind.DATASET, "The influence of every training example on every query, and tables of it.")
INDEX = Artifact(
    "index", Kind.METRICS, "What a new question is compared with: codes of the training examples, and their text."
)
COMPARISON = Artifact("comparison", Kind.METRICS, "The measures of both models, and their answers side by side.")
EVIDENCE = Artifact("evidence", Kind.METRICS, "Whether the influences can be trusted: measures, intervals, a grade.")
REPORT = Artifact("report", Kind.HTML, "Everything of the run on one page that needs nothing else.")
TABLES = Artifact("tables", Kind.DATASET, "The report's headlines as Markdown and its tables as CSV.")
CHAMPION = Artifact("champion", Kind.MODEL, "The champion's model; the base model where there is no champion.")
CHANGES = Artifact("changes", Kind.MARKDOWN, "What has changed since the champion was trained, for reading.")
DECISION = Artifact("decision", Kind.METRICS, "Whether the candidate may be promoted, with every check's interval.")
VERDICT = Artifact("verdict", Kind.MARKDOWN, "The decision for reading.")
PROMOTION = Artifact("promotion", Kind.MARKDOWN, "Which version is the champion now, for reading.")

# In base_model and model
TRAINING_FILE = "training.json"
# In generations
GENERATIONS_FILE = "generations.parquet"
EVAL_ANSWERS_FILE = "eval_answers.parquet"
MODELS_FILE = "models.json"
# In scores, beside what whence.influence.results names
SCORED_EXAMPLES = "train_data"
# In spectra
SPECTRA_FILE = "spectra.parquet"
# In comparison
COMPARISON_FILE = "comparison.json"
ANSWERS_FILE = "comparison.parquet"
# In benchmark
MMLU_FILE = "mmlu.json"
PREDICTIONS_FILE = "predictions.parquet"
# In evidence
EVIDENCE_FILE = "evidence.json"
EVIDENCE_TABLE_FILE = "evidence.parquet"
EVIDENCE_PAGE_FILE = "evidence.md"
# In tables
CARD_FOLDER = "model_card"
# In decision
DECISION_FILE = "decision.json"
