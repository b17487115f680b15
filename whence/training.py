"""Fine-tuning on ``transformers.Trainer``; a run that was killed goes on from its last complete checkpoint."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    PrinterCallback,
    SchedulerType,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import is_wandb_available
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.training_args import OptimizerNames

from whence.config import Config, Training
from whence.data.tokenization import TokenizedExamples
from whence.errors import ConfigError, DataError, ModelError
from whence.files import require_disk, write_json
from whence.models.adapters import add_adapter, save_adapted
from whence.models.forward import accepted, counted_columns
from whence.models.language import LanguageModel
from whence.models.loading import model_bytes, require_checkpoint_disk
from whence.progress import progress

logger = logging.getLogger(__name__)

TRAINING_JSON = "training.json"
COMPLETE = "complete"
LOGGED = ("loss", "grad_norm", "learning_rate", "epoch", "eval_loss",
          "samples_per_second", "tokens_per_second", "memory_bytes")  # fmt: skip
# TrainingArguments that are none of a user's: what the pipeline relies on, and other places to report to.
OURS = frozenset(
    "output_dir do_train do_eval do_predict eval_strategy save_strategy seed data_seed use_cpu remove_unused_columns "
    "logging_nan_inf_filter include_num_input_tokens_seen report_to disable_tqdm label_names resume_from_checkpoint "
    "push_to_hub hub_token hub_model_id run_name logging_dir train_sampling_strategy length_column_name".split()
)
OnLog = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainingResult:
    """Final metrics, everything logged on the way (each with its ``step``), and the step training went on from."""

    metrics: dict[str, float]
    history: list[dict[str, float]]
    resumed_from: int | None


def train(
    base: LanguageModel,
    examples: TokenizedExamples,
    held_out: TokenizedExamples,
    *,
    output: Path,
    checkpoints: Path,
    on_log: OnLog,
) -> TrainingResult:
    """Fine-tune ``base`` in place and write it with its tokenizer and ``training.json`` to ``output``.

    A run that goes on from a checkpoint ends with the same weights as one that was never interrupted: the order of the
    examples hangs on seed and epoch alone, and the checkpoint holds everything else. (Bit for bit on a CPU with the
    same number of threads.) Weights that are trained are kept in float32; under ``training.bf16`` the forward pass
    casts them. With ``training.lora`` these are an adapter's, which is what is written, unless it is to be merged.

    Where ``torch.distributed``'s launcher has started several processes, each calls this with the same arguments and is
    one of the ranks that share every batch: the weights are those of one process with the same global batch, up to
    rounding. The first of them alone writes and calls ``on_log``.

    Args:
        held_out: examples whose loss is watched, never learned from.
        checkpoints: folder of checkpoints; one left by a killed run is gone on from if it is complete.
        on_log: called with step and metrics whenever something is logged: ``loss``, ``learning_rate``, ``grad_norm``,
            ``samples_per_second``, ``tokens_per_second`` (without padding), ``memory_bytes``, and ``eval_loss``.

    Raises:
        DataError: there are fewer examples than one batch of all ranks.
        ResourceError: too little disk for checkpoints and model.
        ModelError: the loss became NaN or infinite.
    """
    config, device = base.config, base.device
    ranks, first = world()
    size = config.training.per_device_train_batch_size
    if config.training.dataloader_drop_last and len(examples) < size * ranks:
        raise DataError(
            f"{len(examples)} training examples do not fill one batch: training.per_device_train_batch_size is {size}"
            + (f", in each of {ranks} processes" if ranks > 1 else ""),
            hint="lower it, or set training.dataloader_drop_last to false",
        )
    set_seed(config.general.seed)
    network = _trainable(base)
    require_checkpoint_disk(network, config, len(examples), checkpoints, ranks)
    require_disk(output, model_bytes(network), "the model", "write it elsewhere")
    bf16 = _bf16(config, device)
    arguments = _arguments(config, checkpoints, device, bf16)
    if device.type == "cpu":
        vars(arguments)["_setup_devices"] = device  # a rank's own is cpu:0, where torch loads no checkpoint to
    arguments._n_gpu = min(arguments.n_gpu, 1)  # further devices are for further ranks, not for DataParallel
    trainer = _Trainer(
        model=network,
        args=arguments,
        train_dataset=examples if config.training.dataloader_drop_last else _filled(examples, size * ranks),
        eval_dataset=held_out,
        data_collator=examples.collate,
        callbacks=[_Report(on_log), _MarkComplete()],
    )
    trainer.remove_callback(PrinterCallback)
    with arguments.main_process_first(local=False):  # it removes what is half-written
        last = _last_complete(checkpoints, ranks)
    resumed_from = _step_of(last) if last else None
    if last and first:
        logger.warning("training goes on from step %d (%s)", resumed_from, last)
    began, started = _now(), time.monotonic()
    outcome = trainer.train(resume_from_checkpoint=str(last) if last else None)
    seconds = time.monotonic() - started
    step = trainer.state.global_step
    if not any(entry["step"] == step and "eval_loss" in entry for entry in trainer.state.log_history):
        trainer.evaluate()
    history = _history(trainer.state)
    metrics = {
        "train_loss": _last_value(history, "loss", outcome.training_loss),
        "final_eval_loss": _last_value(history, "eval_loss", math.nan),
        "steps": float(step),
        "train_seconds": seconds,
    }
    times = {"began": began, "finished": _now()}
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # whole, also where ranks hold parts of them
    if first:
        if config.training.lora.enabled:
            save_adapted(network, config, output, weights)
        else:
            base.model.save_pretrained(output, state_dict=weights)
        chat = base.encoder.chat
        if chat is not None:
            base.tokenizer.chat_template = chat.template  # so that the model is asked elsewhere as it was trained
        base.tokenizer.save_pretrained(output)
        record = {"metrics": metrics, "history": history, "resumed_from": resumed_from, "bf16": bf16, **times}
        write_json(output / TRAINING_JSON, record)
    return TrainingResult(metrics, history, resumed_from)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def world() -> tuple[int, bool]:
    """How many ranks train together, and whether this process is the first of them; the launcher's variables say so."""
    return int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"


def _trainable(base: LanguageModel) -> nn.Module:
    """The model with an adapter, or itself in float32; where it was not on purpose, weights are in float32 already."""
    if base.config.training.lora.enabled:
        return add_adapter(base.model, base.config)
    network: nn.Module = base.model
    return network.to(torch.float32)


def _filled(examples: TokenizedExamples, multiple: int) -> TokenizedExamples:
    """The examples and absent ones after them, whose loss does not count, so that every rank has equally many."""
    count = len(examples)
    whole = count + -count % multiple
    return examples.subset([number % count for number in range(whole)]).without(range(count, whole))


def _arguments(config: Config, checkpoints: Path, device: torch.device, bf16: bool) -> TrainingArguments:
    settings = config.training
    clip = settings.max_grad_norm
    if clip == "auto":
        clip = 0.0 if bf16 else 1.0
    same = settings.model_dump(exclude={"bf16", "max_grad_norm", "eval_steps", "lora", "extra", "fsdp"})
    divided = settings.fsdp and world()[0] > 1
    if divided and settings.gradient_checkpointing:  # FSDP's own, which does not gather the weights once more
        same |= {"gradient_checkpointing": False, "fsdp_config": {"activation_checkpointing": True}}
    return TrainingArguments(
        output_dir=str(checkpoints),
        **same,
        bf16=bf16,
        max_grad_norm=clip,
        eval_strategy="steps" if settings.eval_steps else "epoch",
        eval_steps=settings.eval_steps,
        save_strategy="steps",
        seed=config.general.seed,
        use_cpu=device.type == "cpu",
        fsdp=cast(Any, divided),
        remove_unused_columns=False,
        logging_nan_inf_filter=False,  # it would replace a NaN by the mean of earlier losses
        include_num_input_tokens_seen="non_padding",
        report_to=_reporters(config),
        disable_tqdm=True,  # _Report draws the one bar
        label_names=["labels"],
        **settings.extra,
    )


def check_arguments(settings: Training) -> None:
    """The words of ``training`` that are transformers' own are among those it knows.

    Raises:
        ConfigError: naming the setting, and what is near.
    """
    for key, names in (("optim", OptimizerNames), ("lr_scheduler_type", SchedulerType)):
        value, words = getattr(settings, key), [str(name.value) for name in names]
        if value not in words:
            raise ConfigError(f"training.{key}: transformers has no {value!r}", hint=_near(value, words))
    known = [field.name for field in fields(TrainingArguments)]
    for name in settings.extra:
        if name in Training.model_fields:
            raise ConfigError(f"training.extra: {name} has a setting of its own", hint=f"set training.{name}")
        if name in OURS:
            raise ConfigError(f"training.extra: {name} is decided by the pipeline", hint="leave it out")
        if name not in known:
            raise ConfigError(f"training.extra: TrainingArguments has no {name!r}", hint=_near(name, known))


def _near(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=3)
    return f"did you mean {', '.join(near)}?" if near else "see transformers.TrainingArguments"


def _reporters(config: Config) -> list[str]:
    """Weights & Biases when asked for and there; MLflow is fed by the stage, which knows the nested run."""
    if not config.tracking.wandb:
        return []
    if not is_wandb_available():
        logger.warning(
            "tracking.wandb is on, but wandb is not installed (pip install 'whence[wandb]'); going on without"
        )
        return []
    return ["wandb"]


def _bf16(config: Config, device: torch.device) -> bool:
    if config.training.bf16 == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.training.bf16


class LengthGroupedSampler(Sampler[int]):
    """Batches of like length in a random order that hangs on seed and epoch alone: a resumed run finds it again.

    (transformers' own draws from the global random state, which differs after a restart, and runs from long to short.)

    Args:
        batch_size: examples of a step of all ranks, so that they take the same whatever their number.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has; the Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        whole = len(indices) // self.batch_size
        for batch in torch.randperm(whole, generator=generator).tolist():
            yield from indices[batch * self.batch_size : (batch + 1) * self.batch_size]
        yield from indices[whole * self.batch_size :]


class _Trainer(Trainer):
    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, from the logits of those tokens alone that the loss counts, where the model allows it.

        0 for a batch of absent examples alone, whose mean over no token is not a number; through the model all the
        same, since ranks wait for each other's gradients.
        """
        columns, targets = counted_columns(inputs["labels"])
        if model.training and not len(columns):
            taken = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            return model(**taken).logits.sum() * 0.0
        if self._keeps_logits:
            inputs = inputs | {"logits_to_keep": columns, "shift_labels": targets}
        return super().compute_loss(model, inputs, *args, **kwargs)

    @cached_property
    def _keeps_logits(self) -> bool:
        """Whether the model has transformers' own loss, which takes labels that are shifted already."""
        network: Any = self.model
        if isinstance(network, PeftModel):
            network = network.get_base_model()
        return bool(accepted(network, logits_to_keep=None)) and network.loss_function is ForCausalLMLoss

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> LengthGroupedSampler:
        examples = cast(TokenizedExamples, train_dataset or self.train_dataset)
        return LengthGroupedSampler(examples.lengths, self.args.train_batch_size * self.args.world_size, self.args.seed)

    def get_eval_dataloader(self, eval_dataset: str | Dataset[Any] | None = None) -> DataLoader[Any]:
        """All held-out examples: the Trainer's own would drop the last batch too when training drops it."""
        examples = cast(TokenizedExamples, eval_dataset or self.eval_dataset)
        loader = DataLoader(examples, batch_size=self.args.eval_batch_size, collate_fn=self.data_collator)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared


class _MarkComplete(TrainerCallback):
    """``on_save`` is called when everything of a checkpoint is on disk; only marked ones are gone on from.

    The mark tells the number of ranks: each has its own random state and its own share of the batches seen.
    """

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.world_size > 1:  # every rank writes its random state
            torch.distributed.barrier()
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        for file in (path for path in folder.rglob("*") if path.is_file()):
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
        (folder / COMPLETE).write_text(str(args.world_size), encoding="ascii")


def _last_complete(checkpoints: Path, ranks: int) -> Path | None:
    """The newest checkpoint that so many ranks can go on from; half-written ones and those of others are removed."""
    complete = []
    for folder in checkpoints.glob("checkpoint-*"):
        mark = folder / COMPLETE
        of = int(mark.read_text(encoding="ascii")) if mark.exists() else None
        if of == ranks:
            complete.append(folder)
        else:
            why = "it was not completely written" if of is None else f"it is of {of} processes, and {ranks} train now"
            logger.warning("removing the checkpoint %s: %s", folder, why)
            shutil.rmtree(folder)
    return max(complete, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


class _Report(TrainerCallback):
    """Draw progress; add throughput and memory to each log entry and hand it on; stop at a loss that is no number."""

    def __init__(self, handler: OnLog) -> None:
        self.handler = handler
        self.since: tuple[float, ...] = (0.0, 0, 0)  # time, steps, tokens at the last entry
        self.bar: Any = None  # of tqdm

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.since = (time.monotonic(), state.global_step, state.num_input_tokens_seen)
        self.bar = progress(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        started, *counts = self.since
        self.since = (started + more["metrics"]["eval_runtime"], *counts)  # evaluation is not training time

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        entry = state.log_history[-1]
        if "loss" in entry:
            if not math.isfinite(entry["loss"]):
                raise ModelError(
                    f"the training loss became {entry['loss']} by step {state.global_step}",
                    hint=f"lower training.learning_rate ({args.learning_rate:g}), add training.warmup_steps, or set "
                    "training.max_grad_norm to 1.0",
                )
            entry.update(self._throughput(args, state))
        metrics = {key: float(entry[key]) for key in LOGGED if key in entry}
        if state.is_world_process_zero and metrics.keys() & {"loss", "eval_loss"}:
            self.handler(state.global_step, metrics)

    def _throughput(self, args: TrainingArguments, state: TrainerState) -> dict[str, float]:
        now = (time.monotonic(), state.global_step, state.num_input_tokens_seen)
        seconds, steps, tokens = (new - old for new, old in zip(now, self.since, strict=True))
        self.since = now
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return {
            "samples_per_second": steps * batch / seconds,
            "tokens_per_second": tokens / seconds,
            "memory_bytes": float(_memory()),
        }


def _memory() -> int:
    """Bytes held on the accelerator at most so far, or by this process where there is none."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss


def _history(state: TrainerState) -> list[dict[str, float]]:
    """The log with what a reviewer reads; the Trainer's own summary is left out (it is wrong after a resume)."""
    entries = [entry for entry in state.log_history if entry.keys() & {"loss", "eval_loss"}]
    return [{key: entry[key] for key in ("step", *LOGGED) if key in entry} for entry in entries]


def _last_value(history: list[dict[str, float]], key: str, default: float) -> float:
    return next((entry[key] for entry in reversed(history) if key in entry), default)
