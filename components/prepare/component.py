"""The Kubeflow component of the stage ``prepare``."""

from kfp import dsl

from whence.components.images import component


@component
def prepare(
    settings: str,
    base_model_name: str,
    base_model_revision: str,
    data_eval_rows_0_for_all: int,
    data_max_tokens: int,
    data_name: str,
    data_revision: str,
    data_train_rows_0_for_all: int,
    finetune_batch_size: int,
    finetune_epochs: float,
    finetune_learning_rate: float,
    generate_max_new_tokens: int,
    influence_factors_rows_0_for_all: int,
    influence_factors_strategy: str,
    influence_own_answers: str,
    influence_plotted_layer: int,
    influence_query_rank_0_for_full: int,
    mmlu_enabled: bool,
    mmlu_subjects: list,
    parallel_tasks_0_for_none: int,
    seed: int,
    tracking_experiment: str,
    tracking_registered_model: str,
    tracking_uri: str,
    overrides: dict,
    base_model: dsl.Output[dsl.Model],
    train_data: dsl.Output[dsl.Dataset],
    eval_data: dsl.Output[dsl.Dataset],
    tasks: dsl.OutputPath(list[int]),  # type: ignore[valid-type]
) -> None:
    from whence.kubeflow import run_component

    run_component("prepare", locals())
