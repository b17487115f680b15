"""All the evidence that can be had of an attribution, on data of your own.

    python benchmarks/evidence.py --config configs/my.yaml --folder evidence

Nobody knows which labels of real data are wrong, so a share of the training answers is first replaced by others. Then
the pipeline runs on these rows with every measure of ``validate``, those that train many times included, and prints
them beside the baselines. The folder keeps the rows and the run; said again, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from whence.config import ALL_MEASURES, Config
from whence.config_file import load_config, parse_override
from whence.data.sources import Split, read_rows


def rows_of(config: Config, split: Split) -> pd.DataFrame:
    """The rows with a text and an answer; the others, which training drops too, are counted."""
    rows = read_rows(config.dataset, split, config.general.seed).frame[["input", "output", "source_id"]]
    complete = rows.dropna(subset=["input", "output"])
    if len(complete) < len(rows):
        print(f"{split}: {len(rows) - len(complete)} rows without text or answer are left out")
    return complete


def with_wrong_answers(rows: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """``share`` of the rows with another answer that occurs in the data; ``truth`` keeps the one they had."""
    generator = np.random.default_rng(seed)
    answers = sorted(rows["output"].unique())
    flipped = rows.assign(truth=rows["output"])
    for row in generator.choice(rows.index, size=round(share * len(rows)), replace=False):
        flipped.at[row, "output"] = generator.choice([one for one in answers if one != rows.at[row, "output"]])
    return flipped


def overrides_for(folder: Path) -> list[str]:
    """The settings by which the pipeline reads the rows that were written."""
    dataset = {
        "name": None,
        "train_files": [str(folder / "train.jsonl")],
        "eval_files": [str(folder / "eval.jsonl")],
        "input_column": "input",
        "output_column": "output",
        "id_column": "source_id",
        "truth_column": "truth",
        "label_names": None,
    }
    return [f"dataset.{key}={json.dumps(value)}" for key, value in dataset.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="the settings file")
    parser.add_argument("--folder", type=Path, required=True, help="receives the rows and the run")
    parser.add_argument("--share", type=float, default=0.04, help="of the training answers that are made wrong")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as for whence run, e.g. fewer measures"
    )
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    config = load_config(arguments.config, dict(map(parse_override, arguments.set)))
    folder.mkdir(parents=True, exist_ok=True)
    flipped = with_wrong_answers(rows_of(config, "train"), arguments.share, config.general.seed)
    flipped.to_json(folder / "train.jsonl", orient="records", lines=True)
    rows_of(config, "eval").to_json(folder / "eval.jsonl", orient="records", lines=True)
    values = [*arguments.set, *overrides_for(folder)]
    if not any(value.startswith("validation.measures=") for value in values):
        values.append(f"validation.measures={json.dumps(ALL_MEASURES)}")
    settings = [part for value in values for part in ("--set", value)]
    command = [sys.executable, "-m", "whence.cli", "run", "--config", str(arguments.config.resolve()), *settings]
    sys.exit(subprocess.run(command, cwd=folder).returncode)


if __name__ == "__main__":
    main()
