"""Fitting and scoring shared among parallel tasks, each on its own node: pipelines that stand in for the stages.

They are pipelines within the pipeline: in the Kubeflow UI each is one node that opens, and kfp's local runner, which
takes the items of a loop only from a pipeline's own parameters, runs them too.
"""

from kfp import dsl

from components.fit_covariances.component import fit_covariances
from components.fit_eigenvectors.component import fit_eigenvectors
from components.fit_lambdas.component import fit_lambdas
from components.merge_factors.component import merge_factors
from components.merge_scores.component import merge_scores
from components.score_part.component import score_part
from pipelines.identity import with_run_id


@dsl.pipeline(name="shared-fit", description="Fit the influence factors in parallel tasks.")
def shared_fit(
    config: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    train_data: dsl.Input[dsl.Dataset],
    tasks: list[int],
) -> dsl.Artifact:
    """Covariances in parallel, their eigenvectors, lambda in parallel, and all together: the factors.

    Args:
        config: The resolved configuration.
        model: The fine-tuned model.
        train_data: The training examples.
        tasks: The numbers of the tasks.

    Returns:
        The factors, as ``fit_factors`` alone would have fitted them.
    """
    with dsl.ParallelFor(tasks) as task:
        summed = fit_covariances(config=config, model=model, train_data=train_data, task=task)
    decomposed = fit_eigenvectors(
        config=config, model=model, train_data=train_data, covariances=dsl.Collected(summed.outputs["covariances"])
    )
    eigenvectors = decomposed.outputs["eigenvectors"]
    with dsl.ParallelFor(tasks) as task:
        squared = fit_lambdas(config=config, model=model, train_data=train_data, eigenvectors=eigenvectors, task=task)
    merged = merge_factors(
        config=config,
        model=model,
        train_data=train_data,
        eigenvectors=eigenvectors,
        lambdas=dsl.Collected(squared.outputs["lambdas"]),
    )
    with_run_id(summed, decomposed, squared, merged)
    return merged.outputs["factors"]


@dsl.pipeline(name="shared-score", description="Score the training examples in parallel tasks.")
def shared_score(
    config: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    factors: dsl.Input[dsl.Artifact],
    train_data: dsl.Input[dsl.Dataset],
    generations: dsl.Input[dsl.Dataset],
    tasks: list[int],
) -> dsl.Dataset:
    """Every task scores its share of the training examples; then all together.

    Args:
        config: The resolved configuration.
        model: The fine-tuned model.
        factors: Its influence factors.
        train_data: The training examples.
        generations: The models' own answers.
        tasks: The numbers of the tasks.

    Returns:
        The scores, as ``score`` alone would have computed them.
    """
    with dsl.ParallelFor(tasks) as task:
        part = score_part(
            config=config, model=model, factors=factors, train_data=train_data, generations=generations, task=task
        )
    merged = merge_scores(
        config=config,
        model=model,
        factors=factors,
        train_data=train_data,
        generations=generations,
        parts=dsl.Collected(part.outputs["parts"]),
    )
    with_run_id(part, merged)
    return merged.outputs["scores"]
