"""Stage ``train``: fine-tune the base model; a rerun after a crash is resumed from the last checkpoint."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from whence.running import artifacts
from whence.running.declaration import TOKENS, Parameter, Stage, Work
from whence.running.lineage import TRAINING, hand_on_base, training_of


def compute(work: Work) -> dict[str, float]:
    from whence import train_job
    from whence.ranks import FineTuning
    from whence.report.pages import loss_curve_page

    base_model, model = work.inputs["base_model"], work.outputs["model"]

    def on_log(step: int, metrics: dict[str, float]) -> None:
        work.logged_steps.add(step)
        work.run.log_metrics(metrics, step=step)

    data = {name: work.inputs[name] for name in ("train_data", "eval_data")}
    tuning = FineTuning(base_model, **data, config=work.config, output=model, checkpoints=work.scratch)
    if train_job.wanted(work.config):
        result = train_job.train_on_nodes(tuning, on_log, accelerators_of_nodes(work))
    else:
        result = tuning.run(on_log)
    hand_on_base(base_model, model)
    (model / artifacts.TRAINING_FILE).rename(model / TRAINING)
    _write_card(work)
    work.outputs["loss_curve"].write_text(loss_curve_page(result.history, result.metrics), encoding="utf-8")
    return result.metrics


def accelerators_of_nodes(work: Work) -> dict[str, str]:
    """What each node is to have, by resource name: those of the pipeline's form, or else of the settings."""
    cluster = work.config.cluster
    count = work.parameters["accelerator_count"] or str(cluster.accelerator_count)
    return {work.parameters["accelerator"] or cluster.accelerator: count} if int(count) else {}


def _write_card(work: Work) -> None:
    """Write the card with the model, and into its lineage, which whoever measures the model completes it from."""
    from whence.files import write_json
    from whence.models.loading import stored_parameters
    from whence.report.card import model_card
    from whence.running.provenance import model_digest

    model = work.outputs["model"]
    trained = training_of(model)
    parameters, digest = stored_parameters(model), model_digest(model)
    card = model_card(work.config, model, parameters=parameters, digest=digest, record=trained, data=work.inputs)
    card.write(model)
    write_json(model / TRAINING, trained | {"card": card.model_dump(mode="json")})


def record(work: Work) -> None:
    from whence.data.dataset import ExampleSet
    from whence.models.publishing import save_finetuned
    from whence.running.provenance import provenance
    from whence.tracking.registry import CONTENT_TAG
    from whence.tracking.server import ENDS_WITH_TAG, VERSION_TAG

    model, name = work.outputs["model"], work.config.tracking.registered_model
    trained = training_of(model)
    if (path := work.config.models.finetuned.path) is not None:
        save_finetuned(model, Path(path))
    for entry in trained["history"]:
        if entry["step"] not in work.logged_steps:  # what an earlier, crashed or reused run computed belongs here, too
            work.run.log_metrics({key: value for key, value in entry.items() if key != "step"}, step=entry["step"])
    work.run.log_artifact(work.outputs["loss_curve"], "plots", name="loss_curve.html")
    content = trained["card"]["digest"]
    origin = provenance(work.config, work.inputs["base_model"], work.inputs["train_data"])
    work.run.log_parent_metrics({key: trained["metrics"][key] for key in ("train_loss", "final_eval_loss")})
    info, run = ExampleSet.read(work.inputs["train_data"]).info, work.run.pipeline_path
    number = work.run.log_model_version(
        model,
        name,
        tags=origin | {CONTENT_TAG: content},
        content=content,
        about=f"`{work.config.models.base.name}` trained on {info.rows:,} examples of `{info.source}`: evaluation loss "
        f"{trained['metrics']['final_eval_loss']:.3g}." + (f" [The run]({run}) has its report." if run else ""),
        required=work.run.pipeline_tags().get(ENDS_WITH_TAG) == "promote",
    )
    if number is not None:
        work.run.set_parent_tags({VERSION_TAG: number})
        work.run.describe(f"[Version {number} of {name}](#/models/{quote(name)}/versions/{number}).")


STAGE = Stage(
    name="train",
    help="Fine-tune the base model on the training data.",
    inputs=(artifacts.BASE_MODEL, artifacts.TRAIN_DATA, artifacts.EVAL_DATA),
    outputs=(artifacts.MODEL, artifacts.LOSS_CURVE),
    parameters=(
        Parameter("accelerator", str, "Resource name of the accelerators of each node, where there are several.", ""),
        Parameter("accelerator_count", str, "How many each node has of them; empty: as the settings say.", ""),
    ),
    settings=("general", "training", *TOKENS),
    compute=compute,
    record=record,
    group="training",
    gpu=True,
    divided=True,
)
