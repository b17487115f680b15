"""Stage ``generate``: what both models answer, to the prompts and to the held-out rows."""

from __future__ import annotations

from whence.running import artifacts
from whence.running.declaration import TOKENS, Stage, Work
from whence.running.roles import CHAMPION_INPUT, models_to_compare, write_models


def compute(work: Work) -> dict[str, float]:
    import pandas as pd

    from whence.data.dataset import ExampleSet
    from whence.data.prompts import load_prompts
    from whence.evaluation.generation import answer_examples, generate
    from whence.models.loading import load_base

    held_out = ExampleSet.read(work.inputs["eval_data"])
    prompts = load_prompts(work.config)
    models = models_to_compare(work)
    answers, eval_answers = [], []
    for model in models.values():
        language = load_base(model.folder, work.config)
        answers.append(generate(language, prompts, model.id))
        rows = answer_examples(language, held_out.frame, sorted(held_out.info.labels))
        eval_answers.append(rows.assign(model_id=model.id))
        del language  # two models at once may not fit
    folder = work.outputs["generations"]
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.concat(answers, ignore_index=True)
    table.to_parquet(folder / artifacts.GENERATIONS_FILE, index=False)
    pd.concat(eval_answers, ignore_index=True).to_parquet(folder / artifacts.EVAL_ANSWERS_FILE, index=False)
    write_models(folder, models)
    return {
        "prompts": float(len(prompts)),
        "eval_rows": float(len(eval_answers[0])),
        "seconds_per_prompt": float(table["seconds"].mean()),
    }


def record(work: Work) -> None:
    import pandas as pd

    folder = work.outputs["generations"]
    work.run.log_table(pd.read_parquet(folder / artifacts.GENERATIONS_FILE), "generations.json")
    work.run.log_artifacts(folder, "generations")


STAGE = Stage(
    name="generate",
    help="Answer the prompts and the held-out rows with both models.",
    inputs=(artifacts.MODEL, artifacts.EVAL_DATA, CHAMPION_INPUT),
    outputs=(artifacts.GENERATIONS,),
    settings=(
        "general", "models.base.id", "models.finetuned.id", "generation", "prompts", *TOKENS,
        "evaluation.batch_size", "evaluation.num_samples",
    ),
    compute=compute,
    record=record,
    group="models",
    gpu=True,
)  # fmt: skip
