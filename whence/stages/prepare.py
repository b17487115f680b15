"""Stage ``prepare``: everything that can be wrong is found here, on a CPU, before any accelerator is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from whence.config import BUILTIN_TINY_LLAMA
from whence.running import artifacts
from whence.running.declaration import Parameter, Stage, Work
from whence.running.form import FORM, form_help, merge_form
from whence.stages import check_stage_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from whence.config import Config
    from whence.data.dataset import ExampleSet

TASKS = Parameter("tasks", list[int], "The numbers of the tasks that share the work.")


def check(
    config: Config, announce: Callable[[str], None] = lambda subject: None, without: Collection[str] = ()
) -> None:
    """Everything that can be judged without loading weights; see :func:`whence.running.checks.check_world`."""
    from whence.running.checks import check_world

    check_stage_names(config)
    check_world(config, announce, without)


def resolve(arguments: Mapping[str, Any]) -> Config:
    """Check the settings and what they refer to."""
    from whence.config_file import inline_prompts, parse_config, unpack

    overrides = merge_form(arguments, arguments.get("overrides") or {})
    config = parse_config(unpack(arguments["settings"]), overrides, origin="the profile with its overrides")
    check(config, without=["data"])  # which `compute` reads
    return inline_prompts(config, from_storage=True)  # so that all stages ask the same


def compute(work: Work) -> dict[str, float]:
    from whence.data.preparation import prepare_datasets, with_format
    from whence.models.loading import empty_model, load_base_tokenizer, write_base
    from whence.running.checks import check_base_model

    base_model = work.outputs["base_model"]

    def tokenizer_for(texts: list[str]) -> PreTrainedTokenizerBase:
        write_base(work.config, texts, base_model)
        return load_base_tokenizer(base_model)

    train, evaluation = prepare_datasets(work.config, tokenizer_for)
    work.config = with_format(work.config, train.info.format, train.info.loss_on)
    if work.config.models.base.name == BUILTIN_TINY_LLAMA:  # any other was looked at before its data was read
        check_base_model(work.config, empty_model(str(base_model)), load_base_tokenizer(base_model))
    train.write(work.outputs["train_data"])
    evaluation.write(work.outputs["eval_data"])
    work.returns[TASKS.name] = list(range(work.config.general.parallel_tasks or 1))
    return _counts("train", train) | _counts("eval", evaluation)


def _counts(name: str, examples: ExampleSet) -> dict[str, float]:
    info = examples.info
    counts = {f"{name}_rows": float(info.rows), f"{name}_truncated": float(info.truncated)}
    counts |= {f"{name}_dropped_{reason}": float(count) for reason, count in info.dropped.items()}
    return counts | {f"{name}_changed_{kind}": float(count) for kind, count in info.changed.items()}


def record(work: Work) -> None:
    from whence.data.dataset import ExampleSet
    from whence.running.lineage import CONFIG_FILE
    from whence.tracking.server import ENDS_WITH_TAG

    rows = {}
    for name in ("train_data", "eval_data"):
        info = ExampleSet.read(work.outputs[name]).info
        rows[name] = f"{info.rows:,}"
        work.run.log_dataset(name, info.fingerprint, info.source, info.rows, context=info.split, parent=True)
        work.run.log_artifact(work.outputs[name] / "dataset.json", name)
    work.run.log_artifact(work.outputs["base_model"] / CONFIG_FILE, parent=True)
    work.run.set_parent_tags({ENDS_WITH_TAG: "report"})
    base = work.config.models.base
    work.run.describe(
        f"`{base.name}` trained on {rows['train_data']} examples of `{info.source}`, {rows['eval_data']} held out."
    )


STAGE = Stage(
    name="prepare",
    help="Check the settings and what they name, and prepare the datasets.",
    inputs=(),
    outputs=(artifacts.BASE_MODEL, artifacts.TRAIN_DATA, artifacts.EVAL_DATA),
    parameters=(
        Parameter("settings", str, "The profile as `config_file.pack` gives it; the other parameters win over it."),
        *(Parameter(name, field.type, form_help(field)) for name, field in FORM.items()),
        Parameter("overrides", dict, 'Further settings by dotted key, e.g. {"training.warmup_steps": 100}.'),
    ),
    returns=(TASKS,),
    resolve=resolve,
    settings=("general", "models", "dataset", "prompts"),
    compute=compute,
    record=record,
    group="data",
    reuse=False,  # a hub dataset, a bucket or a tracking server may have changed since the last look
)
