"""A real Kubeflow pipeline of two trivial stages, which write the events that the stage runner writes."""

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

STAGES = ("first", "second")


@dsl.component(base_image="whence/first:test", install_kfp_package=False)
def first(page: dsl.Output[dsl.HTML]) -> None:
    import sys
    from pathlib import Path

    from whence.running.runner import emit

    emit("first", "started")
    print("collecting:  50%|█████     | 5/10 [00:01<00:01,  5.00it/s]", file=sys.stderr)
    Path(page.path).write_text("<p>hello</p>")
    emit("first", "finished", seconds=1.5, metrics={"rows": 12.0, "loss": 0.12345})


@dsl.component(base_image="whence/second:test", install_kfp_package=False)
def second(page: dsl.Input[dsl.HTML], mode: str) -> None:
    import os
    import time
    from pathlib import Path

    from whence.running.runner import emit

    emit("second", "started")
    print("in second:", os.environ["KFP_RUN_ID"], Path(page.path).read_text())
    if mode == "fail":
        emit("second", "failed", seconds=0.1, message="column 'txt' is not in train.csv")
        raise SystemExit(1)
    if mode == "die":
        os._exit(9)
    if mode == "hang":
        try:
            for line in range(600):
                print("training", line)
                time.sleep(0.2)
        except BaseException as error:  # as the stage runner does
            emit("second", "failed", message=type(error).__name__)
            raise
    emit("second", "finished", seconds=0.2, metrics={})


def two_stage_pipeline(mode: str = "pass") -> GraphComponent:
    """``mode`` is what the second stage does: pass, fail, die (without a word) or hang."""

    @dsl.pipeline(name="two-stages")
    def pipeline() -> None:
        second(page=first().outputs["page"], mode=mode)

    return pipeline


if __name__ == "__main__":  # `whence run` of a pipeline that hangs, into the given folder
    import sys

    from whence.cli import main
    from whence.pipelines.graphs.catalog import PipelineKind

    PipelineKind.build = lambda kind, config: two_stage_pipeline("hang")
    PipelineKind.stages = STAGES
    main(["run", "--artifact-root", sys.argv[1]])
