"""The Kubeflow face of the stage ``train``."""

from kfp import dsl

from whence.components.images import image


@dsl.component(base_image=image("train"), install_kfp_package=False)
def train(
    config: dsl.Input[dsl.Artifact],
    base_model: dsl.Input[dsl.Model],
    train_data: dsl.Input[dsl.Dataset],
    eval_data: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    history: dsl.Output[dsl.Artifact],
    loss_curve: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Fine-tune the base model on the training data.

    Args:
        config: The resolved configuration.
        base_model: The base model, or the reference to it.
        train_data: The training examples.
        eval_data: The held-out examples, for the evaluation loss.

    Returns:
        model: The fine-tuned model (safetensors and tokenizer) and training.json.
        history: What was logged on the way, the training.json of the model.
        loss_curve: Training and evaluation loss over the steps, as a page.
        metrics: Final losses, speed and memory.
    """
    from pathlib import Path

    from whence.kubeflow import describe_model, log_metrics
    from whence.stages import train as stage

    result = stage.run(
        config=Path(config.path),
        base_model=Path(base_model.path),
        train_data=Path(train_data.path),
        eval_data=Path(eval_data.path),
        model=Path(model.path),
        history=Path(history.path),
        loss_curve=Path(loss_curve.path),
    )
    log_metrics(metrics, result.metrics)
    describe_model(model)
