"""Stage ``compare``: base against fine-tuned, and every answer beside the training examples behind it. No torch."""

from __future__ import annotations

import json

from whence.running import artifacts
from whence.running.declaration import Stage, Work
from whence.running.lineage import TRAINING, training_of
from whence.running.roles import with_model_names


def compute(work: Work) -> dict[str, float]:
    import shutil

    import pandas as pd

    from whence.data.prompts import load_prompts
    from whence.evaluation.comparison import compare_models, headline_metrics, join_influences
    from whence.files import write_json
    from whence.influence.results import Scores

    generations, folder = work.inputs["generations"], work.outputs["comparison"]
    config = with_model_names(work.config, generations)
    references = {prompt.prompt_id: prompt.reference for prompt in load_prompts(config)}
    answers = pd.read_parquet(generations / artifacts.GENERATIONS_FILE)
    measured = compare_models(pd.read_parquet(generations / artifacts.EVAL_ANSWERS_FILE), answers, references, config)
    headline = headline_metrics(measured)
    write_json(folder / artifacts.COMPARISON_FILE, measured | {"headline": headline})
    if "scores" in work.inputs:
        table = join_influences(answers, Scores(work.inputs["scores"]).influences, references, config)
        table.to_parquet(folder / artifacts.ANSWERS_FILE, index=False)
    shutil.copyfile(generations / artifacts.MODELS_FILE, folder / artifacts.MODELS_FILE)
    if not (generations / TRAINING).is_file():  # a model that was trained elsewhere
        return headline
    trained = training_of(generations)["metrics"]
    return headline | {name: trained[name] for name in ("train_loss", "final_eval_loss")}


def record(work: Work) -> None:
    import pandas as pd

    folder = work.outputs["comparison"]
    measured = json.loads((folder / artifacts.COMPARISON_FILE).read_text(encoding="utf-8"))
    work.run.log_parent_metrics(measured["headline"])
    if (folder / artifacts.ANSWERS_FILE).is_file():
        work.run.log_table(pd.read_parquet(folder / artifacts.ANSWERS_FILE), "comparison.json", parent=True)
    work.run.log_artifacts(folder, "comparison")


STAGE = Stage(
    name="compare",
    help="Compare the models, and put every answer beside the examples behind it.",
    inputs=(artifacts.GENERATIONS, artifacts.SCORES.without("Without it there are the measures alone.")),
    outputs=(artifacts.COMPARISON,),
    settings=("general.seed", "models", "prompts", "evaluation.bootstrap_samples", "evaluation.confidence"),
    compute=compute,
    record=record,
    group="pages",
)
