"""The Kubeflow face of the stage ``prepare``."""

from kfp import dsl

from whence.components.images import image
from whence.kubeflow import FORM, form_help


@dsl.component(base_image=image("prepare"), install_kfp_package=False)
def prepare(
    settings: str,
    base_model_name: str,
    base_model_revision: str,
    dataset_name: str,
    dataset_revision: str,
    num_samples: int,
    num_eval_samples: int,
    max_length: int,
    num_train_epochs: float,
    learning_rate: float,
    per_device_train_batch_size: int,
    factors_strategy: str,
    factors_num_samples: int,
    inspection_layer: int,
    query_gradient_low_rank: int,
    use_generated: str,
    max_new_tokens: int,
    run_mmlu: bool,
    mmlu_tasks: list,
    parallel_tasks: int,
    seed: int,
    tracking_uri: str,
    experiment: str,
    registered_model: str,
    overrides: dict,
    config: dsl.Output[dsl.Artifact],
    base_model: dsl.Output[dsl.Model],
    train_data: dsl.Output[dsl.Dataset],
    eval_data: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    mlflow_run: dsl.Output[dsl.Markdown],
    tasks: dsl.OutputPath(list[int]),  # type: ignore[valid-type]
) -> None:
    """Check the settings and everything they name, then write the resolved configuration and the datasets.

    Args:
        settings: The profile as YAML text; the other parameters win over it.
        overrides: Further settings by dotted key, e.g. {"training.warmup_steps": 100}.

    Returns:
        config: The resolved configuration as YAML, every value explicit.
        base_model: The built-in model, or the reference to the hub model or folder.
        train_data: The training examples, with every dropped row counted by reason.
        eval_data: The held-out examples.
        metrics: Rows kept, shortened and dropped.
        mlflow_run: The link to the record of this run in MLflow.
        tasks: The numbers of the tasks that share the work.
    """
    form = dict(locals())  # exactly the arguments, as the first statement
    from pathlib import Path

    from whence.kubeflow import describe_dataset, describe_model, link_to_mlflow, log_metrics, merge_form
    from whence.stages import prepare as stage

    result = stage.run(
        settings=settings,
        overrides=merge_form(form, overrides),
        config=Path(config.path),
        base_model=Path(base_model.path),
        train_data=Path(train_data.path),
        eval_data=Path(eval_data.path),
        tasks=Path(tasks),
    )
    log_metrics(metrics, result.metrics)
    link_to_mlflow(mlflow_run, result.pipeline_url)
    describe_model(base_model)
    describe_dataset(train_data)
    describe_dataset(eval_data)


for _name, _parameter in FORM.items():  # the help of a setting is written once, beside its definition
    prepare.component_spec.inputs[_name].description = form_help(_parameter)
