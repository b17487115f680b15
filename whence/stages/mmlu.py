"""Stage ``mmlu``: DeepEval's MMLU, or another question set in its layout, on the models the settings name."""

from __future__ import annotations

from whence.running import artifacts
from whence.running.declaration import Stage, Work
from whence.running.roles import CHAMPION_INPUT, is_retraining, models_to_compare


def compute(work: Work) -> dict[str, float]:
    import pandas as pd

    from whence.evaluation.mmlu import evaluate_mmlu
    from whence.files import write_json
    from whence.models.loading import load_base

    switches = work.config.evaluation.mmlu.model_dump()
    results, predictions = {}, []
    metrics: dict[str, float] = {}
    for role, model in models_to_compare(work).items():
        if not (switches[role] or is_retraining(work)):  # the gate compares both
            continue
        language = load_base(model.folder, work.config)
        result = evaluate_mmlu(language, model.id)
        results[model.id] = result.summary
        predictions.append(result.predictions)
        metrics |= result.metrics
        del language  # two models at once may not fit
    folder = work.outputs["benchmark"]
    write_json(folder / artifacts.MMLU_FILE, results)
    pd.concat(predictions, ignore_index=True).to_parquet(folder / artifacts.PREDICTIONS_FILE, index=False)
    return metrics


def record(work: Work) -> None:
    work.run.log_artifacts(work.outputs["benchmark"], "mmlu")


STAGE = Stage(
    name="mmlu",
    help="Answer multiple-choice questions of the chosen subjects.",
    inputs=(artifacts.MODEL, CHAMPION_INPUT),
    outputs=(artifacts.BENCHMARK,),
    settings=("general", "models.base.id", "models.finetuned.id", "evaluation.mmlu", "evaluation.batch_size"),
    switch="evaluation.mmlu.enabled",
    side=True,
    compute=compute,
    record=record,
    group="benchmark",
    gpu=True,
)
