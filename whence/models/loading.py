"""Base and fine-tuned models: what can be found out without weights, loading, device and precision."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from whence.config import BUILTIN_TINY_LLAMA, Config, General
from whence.errors import ConfigError, ModelError, ResourceError
from whence.files import require_disk
from whence.models import adapters
from whence.models.builtin import tiny_llama, train_tokenizer
from whence.models.forward import accepted
from whence.models.language import LanguageModel, make_usable
from whence.threads import use_threads

logger = logging.getLogger(__name__)

REFERENCE = "base.json"
TAKES = ("input_ids", "attention_mask", "past_key_values", "use_cache")
POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions?|position_embeddings?|positions_embed)(\.|$)")


def choose_device(general: General) -> torch.device:
    """The device models run on.

    Raises:
        ModelError: ``general.device`` is ``cuda`` and there is none.
    """
    available = torch.cuda.is_available()
    if general.device == "cuda" and not available:
        raise ModelError("general.device is cuda, but torch sees no CUDA device", hint="set it to auto or cpu")
    return torch.device("cuda" if available and general.device != "cpu" else "cpu")


def count_processes(general: General) -> int:
    """Processes that share a task on this machine: as many as ``general.processes`` says, or as there are devices."""
    if general.processes != "auto":
        return general.processes
    return torch.cuda.device_count() if choose_device(general).type == "cuda" else 1


def have_devices(general: General) -> bool:
    """Whether each of those processes has a CUDA device of its own; false where they compute on the CPU.

    Raises:
        ResourceError: there are fewer devices than processes.
    """
    if choose_device(general).type != "cuda":
        return False
    processes, devices = count_processes(general), torch.cuda.device_count()
    if processes > devices:
        raise ResourceError(
            f"general.processes is {processes}, but torch sees {devices} CUDA devices",
            hint="set it to auto, or general.device to cpu",
        )
    return True


def choose_dtype(general: General, device: torch.device) -> torch.dtype:
    """The precision weights are computed in: bfloat16 where the device has it, unless the settings say otherwise."""
    if general.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[general.dtype]


def check_model(config: Config) -> None:
    """Check in seconds that the base model can be had and is a causal language model; weights are not loaded.

    Raises:
        ModelError: the folder or hub name cannot be read, holds another kind of model, or damaged weight files.
    """
    base = config.models.base
    choose_device(config.general)
    if base.name == BUILTIN_TINY_LLAMA:
        return
    base_model_config(base.name, base.revision)
    if Path(base.name).is_dir():
        load_tokenizer(base.name)
        _check_weights(Path(base.name))


def _check_weights(folder: Path) -> None:
    """Weight files are there and as long as their headers say."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"models.base.name: the folder {folder} holds no *.safetensors weights", hint="save the model as such"
        )
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"models.base.name: the weights {file} are damaged ({_first_line(error)})", hint="copy the file again"
            ) from error


def base_model_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The transformers configuration of a hub model or folder (no weights are loaded)."""
    try:
        architecture: PreTrainedConfig = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"models.base.name: cannot read the configuration of {name!r}: {_first_line(error)}",
            hint="give a Hugging Face model name, or a folder with config.json, weights and tokenizer",
        ) from error
    if architecture.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"models.base.name: {name!r} is of type {architecture.model_type!r}, not a causal language model"
        )
    return architecture


def write_base(config: Config, texts: list[str], folder: Path) -> None:
    """Write the base-model artifact: the built-in model itself, or a reference to the hub model or folder.

    Args:
        texts: training texts, of which the built-in model's tokenizer is learned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = config.models.base
    if base.name == BUILTIN_TINY_LLAMA:
        tokenizer = train_tokenizer(texts)
        model = tiny_llama(len(tokenizer), config.general.max_length, config.general.seed)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        reference = {"name": base.name, "revision": base.revision}
        (folder / REFERENCE).write_text(json.dumps(reference, indent=1), encoding="utf-8")


def load_base(folder: Path, config: Config, dtype: torch.dtype | None = None) -> LanguageModel:
    """Load the base model from its artifact; see :func:`load_model`."""
    name, revision = _base_source(folder)
    return load_model(name, config, revision, dtype)


def load_base_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load only the tokenizer of the base model."""
    return load_tokenizer(*_base_source(folder))


def empty_model(name: str, revision: str | None = None) -> PreTrainedModel:
    """A model's modules without weights (on the meta device), to check settings against its structure.

    Attention and precision are those that run there: fused kernels look at values, or at what they are given.
    """
    with torch.device("meta"):
        config = base_model_config(name, revision)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, trust_remote_code=False, dtype=torch.bfloat16, attn_implementation="eager"
        )
    return model


def require_usable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, general: General) -> None:
    """Refuse a model that cannot go through all stages; the log says where one has no fused attention.

    Args:
        model: with weights or without.

    Raises:
        ModelError: it is of another kind than the stages need, or the tokenizer is of another model.
        ConfigError: ``general`` asks for what the model cannot do.
    """
    kind = type(model).__name__
    flags = {module.is_causal for module in model.modules() if hasattr(module, "is_causal")}
    missing = [name for name in TAKES if not accepted(model, **{name: None})]
    if missing:
        raise ModelError(
            f"models.base.name: {kind} takes no {' and no '.join(missing)}: it reads a text as one state, not as "
            "tokens that attend to one another, and padding would change it",
            hint="take a model with attention",
        )
    if flags == {False}:
        raise ModelError(f"models.base.name: {kind} reads a text in both directions, so it cannot go on with one")
    if general.use_flash_attention and not model._supports_flash_attn:
        raise ConfigError(
            f"general.use_flash_attention: {kind} has no FlashAttention in transformers", hint="set it to false"
        )
    if not model._supports_sdpa and not general.use_flash_attention:
        logger.warning("%s has no fused attention; its own is used, which takes more time and memory", kind)
    _require_vocabulary(tokenizer, model.get_input_embeddings().get_parameter("weight").shape[0])
    _require_positions(model, general.max_length)


def _require_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Every token that a text can become has an embedding."""
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    used = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    added = tokenizer.added_tokens_decoder  # further marks, such as those for images, which no text has
    wrong = {token: number for token, number in beyond.items() if number in used or number not in added}
    if wrong:
        first = sorted(wrong.items(), key=lambda item: item[1])[:3]
        named = ", ".join(f"{token!r} ({number})" for token, number in first)
        raise ModelError(
            f"models.base.name: the tokenizer has {len(wrong)} tokens beyond the model's {rows:,} embeddings, ids "
            f"0 to {rows - 1}: {named}",
            hint="take the model's own tokenizer, or enlarge it (resize_token_embeddings)",
        )


def _require_positions(model: PreTrainedModel, longest: int) -> None:
    """The longest sequence is within the model's table of positions; those that are computed have no end."""
    named = [*(name for name, _ in model.named_parameters()), *(name for name, _ in model.named_buffers())]
    config, table = model.config, next((name for name in named if POSITIONS.search(name)), None)
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    computed = table is None and hasattr(config, "max_position_embeddings")
    if most is not None and longest > most and not computed:
        raise ConfigError(
            f"general.max_length {longest} is beyond the {most} positions that {type(model).__name__} has",
            hint="lower it",
        )


def _base_source(folder: Path) -> tuple[str, str | None]:
    reference = folder / REFERENCE
    if not reference.exists():
        return str(folder), None
    values = json.loads(reference.read_text(encoding="utf-8"))
    return values["name"], values["revision"]


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer that can pad and end a text.

    Raises:
        ModelError: it cannot be read, or has no end-of-text token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name), revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot read the tokenizer of {str(name)!r}: {_first_line(error)}") from error
    return make_usable(tokenizer)


def load_model(
    name: str | Path, config: Config, revision: str | None = None, dtype: torch.dtype | None = None
) -> LanguageModel:
    """Load a causal language model in evaluation mode, on the chosen device and in the chosen precision.

    From now on torch computes on as many threads as pay for it, see :func:`whence.threads.use_threads`.

    Args:
        name: hub name or folder; that of an adapter gives its base model with the adapter in place.
        dtype: precision that wins over ``general.dtype``.

    Raises:
        ModelError: model or tokenizer cannot be read or lack weights, or FlashAttention is asked for and not there.
    """
    if adapters.is_adapter(name):
        return _load_adapted(Path(name), config, dtype)
    general = config.general
    device, quantized = choose_device(general), adapters.quantization(config)
    attention = "flash_attention_2" if general.use_flash_attention else None  # fused where the model has it
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(name),
            revision=revision,
            dtype=dtype or choose_dtype(general, device),
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **quantized,
        )
    except ImportError as error:
        raise ModelError(
            f"general.use_flash_attention: {_first_line(error)}", hint="install flash-attn or set it to false"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"cannot load the model {str(name)!r}: {_first_line(error)}",
            hint="a folder needs config.json and safetensors weights",
        ) from error
    model, report = loaded
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:5])
        raise ModelError(f"the weights of {str(name)!r} lack {missing}; the model would answer from random weights")
    use_threads(model)
    return LanguageModel(model.to(device).eval(), load_tokenizer(name, revision), config)


def load_trainable(folder: Path, config: Config) -> LanguageModel:
    """Load the base model as it is to be trained: in float32, or in the precision of compute under an adapter.

    Weights that are trained and were once rounded to bfloat16 do not come back; those under an adapter stay.
    """
    return load_base(folder, config, None if config.training.lora.enabled else torch.float32)


def _load_adapted(folder: Path, config: Config, dtype: torch.dtype | None) -> LanguageModel:
    base = adapters.base_of(folder)
    loaded = load_base(base, config, dtype) if isinstance(base, Path) else load_model(base[0], config, base[1], dtype)
    adapted = adapters.load_adapter(loaded.model, folder, config.factors.merge_adapter)
    network: nn.Module = adapted
    network.to(loaded.device)
    return LanguageModel(adapted.eval(), load_tokenizer(folder), config)


def require_checkpoint_disk(model: nn.Module, config: Config, examples: int, checkpoints: Path, ranks: int = 1) -> None:
    """Refuse where a model in float32 and its checkpoints do not fit: each as much three times, with what AdamW keeps.

    Raises:
        ResourceError: naming the folder, what is needed and what there is.
    """
    settings, size = config.training, model_bytes(model)
    batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * ranks
    saved = math.ceil(settings.num_train_epochs * examples / batch / settings.save_steps)
    there = sum(file.stat().st_size for file in checkpoints.rglob("*") if file.is_file())  # by a run that is to go on
    needed = 3 * size * min(saved, settings.save_total_limit + 1) - there
    require_disk(checkpoints, needed + size, "checkpoints and model", "lower training.save_total_limit")


def model_bytes(model: nn.Module) -> int:
    """What the weights of a model that are trained take as a file in float32."""
    return 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def stored_parameters(folder: Path) -> int:
    """How many parameters a model folder holds: of an adapter its own alone."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return count


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
