"""The Kubeflow component of the stage ``prepare``."""

from kfp import dsl

from whence.components.images import component


@component
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
    base_model: dsl.Output[dsl.Model],
    train_data: dsl.Output[dsl.Dataset],
    eval_data: dsl.Output[dsl.Dataset],
    tasks: dsl.OutputPath(list[int]),  # type: ignore[valid-type]
) -> None:
    from whence.kubeflow import run_component

    run_component("prepare", locals())
