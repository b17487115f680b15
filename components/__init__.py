"""The Kubeflow faces of the stages, one folder each: ``component.py`` and its README."""

STAGES = ("prepare", "train", "fit_factors", "inspect", "generate", "score", "validate", "compare", "mmlu", "report")
# In place of fit_factors and score, and before validate, where several tasks share them.
SHARED_FIT = ("fit_covariances", "fit_eigenvectors", "fit_lambdas", "merge_factors")
SHARED_SCORE = ("score_part", "merge_scores")
SHARED_VALIDATE = ("retrain_share",)
# Around the others in the retraining pipeline.
RETRAINING = ("find_champion", "gate", "promote")
ALL = (*STAGES, *SHARED_FIT, *SHARED_SCORE, *SHARED_VALIDATE, *RETRAINING)
