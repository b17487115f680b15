"""LoRA adapters (Hu et al., 2021, arXiv:2106.09685) by peft: put into a model to be trained, and loaded again.

A model with an adapter is the base model itself whose linear layers have got two matrices more, ``lora_A`` and
``lora_B``; whoever trains, asks or analyses it works with it as with any other.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from whence.config import Config
from whence.errors import ConfigError, ModelError
from whence.models import BASE

CONFIG_FILE = "adapter_config.json"
SIDES = (".lora_A.", ".lora_B.")


def is_adapter(folder: str | Path) -> bool:
    """Whether a model folder holds an adapter to a base model, and not weights of its own."""
    return (Path(folder) / CONFIG_FILE).is_file()


def add_adapter(model: PreTrainedModel, config: Config) -> nn.Module:
    """Put a fresh adapter into ``model``, in place; only its matrices, in float32, are to be trained.

    Returns:
        peft's view of it, which saves the adapter alone.

    Raises:
        ConfigError: the model has no such modules.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    settings = config.training.lora
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for wanted in settings.modules_to_save:
        if wanted.rpartition(".")[2] not in names:
            raise ConfigError(
                f"training.lora.modules_to_save: the base model has no module {wanted!r}",
                hint=f"did you mean {', '.join(get_close_matches(wanted, sorted(names))) or 'lm_head'}?",
            )
    if settings.quantize:
        prepare: Any = prepare_model_for_kbit_training
        prepare(model, use_gradient_checkpointing=config.training.gradient_checkpointing)
    elif config.training.gradient_checkpointing:
        model.enable_input_require_grads()  # else no gradient passes the frozen embeddings into a checkpointed layer
    described = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft divides it by r, whole or not
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        modules_to_save=settings.modules_to_save or None,
        ensure_weight_tying=bool(settings.modules_to_save) and bool(model.config.tie_word_embeddings),
        task_type="CAUSAL_LM",
    )
    try:
        with torch.device(model.device) if model.device.type == "meta" else torch.device("cpu"):
            adapted: nn.Module = get_peft_model(model, described)
    except ValueError as error:
        raise ConfigError(
            f"training.lora.target_modules: {str(error).splitlines()[0]}", hint="name linear modules of the base model"
        ) from error
    return adapted


def save_adapted(adapted: nn.Module, config: Config, folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write a trained adapter with its base's name and revision, or the whole model (``training.lora.merge``)."""
    peft_model: Any = adapted
    if config.training.lora.merge:
        peft_model.merge_and_unload().save_pretrained(folder)
        return
    described = peft_model.peft_config["default"]
    described.base_model_name_or_path, described.revision = config.models.base.name, config.models.base.revision
    # Whether embeddings changed is not to be looked up on the hub: they have no adapter.
    peft_model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)


def base_of(folder: Path) -> Path | tuple[str, str | None]:
    """The base model of the adapter in ``folder``: the one that travels with it, or name and revision on the hub.

    Raises:
        ModelError: the adapter cannot be read.
    """
    from peft import PeftConfig

    if (folder / BASE).is_dir():
        return folder / BASE
    try:
        described: Any = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"cannot read the adapter {folder}: {error}", hint="train it again") from error
    return str(described.base_model_name_or_path), described.revision


def load_adapter(base: PreTrainedModel, folder: Path, merge: bool) -> PreTrainedModel:
    """Put the adapter in ``folder`` into its base model, in place: as it was trained, or merged into the weights.

    What is trained further of a merged one is every weight, as of a model without adapters.

    Raises:
        ModelError: the adapter cannot be read, or is of another model.
    """
    from peft import PeftModel

    try:
        adapted: Any = PeftModel.from_pretrained(base, str(folder), is_trainable=not merge)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"cannot load the adapter {folder}: {str(error).splitlines()[0]}", hint="it belongs to another base model"
        ) from error
    if merge:
        return cast(PreTrainedModel, adapted.merge_and_unload().requires_grad_(True))
    return cast(PreTrainedModel, adapted.get_base_model())


def quantization(config: Config) -> dict[str, Any]:
    """What loading a base model in 4 bits takes (Dettmers et al., 2023, arXiv:2305.14314); empty where none is asked.

    Raises:
        ModelError: there is no CUDA device, or bitsandbytes is not installed.
    """
    lora = config.training.lora
    if not (lora.enabled and lora.quantize):
        return {}
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not torch.cuda.is_available() or config.general.device == "cpu":
        raise ModelError("training.lora.quantize: 4 bits need a CUDA device", hint="set it to null")
    if not is_bitsandbytes_available():
        raise ModelError(
            "training.lora.quantize: bitsandbytes is not installed",
            hint="pip install 'whence[qlora]', or set it to null",
        )
    four_bits: Any = BitsAndBytesConfig
    return {
        "device_map": {"": "cuda"},
        "quantization_config": four_bits(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    }
