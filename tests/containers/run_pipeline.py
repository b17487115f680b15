"""Run the attribution pipeline in the stages' containers: ``run_pipeline.py CONFIG FOLDER RUN_ID``.

A process of its own, because the components take the images' names from the environment when they are imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from docker.types import Mount
from kfp import local

from whence.config_file import load_config
from whence.pipelines.graphs.attribution import attribution_pipeline
from whence.pipelines.graphs.placement import RUN_ID_VARIABLE

MEMORY = "3g"


def main(config: Path, folder: Path, run_id: str) -> None:
    """Each stage read-only, without capabilities, limited in memory, with named places to write to."""
    resolved = load_config(config)
    names = ("WHENCE_IMAGE_REGISTRY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    runner = local.DockerRunner(
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        mem_limit=MEMORY,
        memswap_limit=MEMORY,
        pids_limit=512,
        network_mode="host",
        tmpfs={"/tmp": "mode=1777"},
        mounts=[Mount(target, str(folder / name), "bind") for target, name in (("/work", "work"), ("/cache", "cache"))],
        environment={**environment, RUN_ID_VARIABLE: run_id, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    local.init(runner, pipeline_root=str(folder / "root"))
    attribution_pipeline(resolved)()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).resolve(), sys.argv[3])
