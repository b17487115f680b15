"""Base and fine-tuned models: loading, device and precision, and the built-in tiny Llama of the demo."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from whence.config import BUILTIN_TINY_LLAMA, Config, General
from whence.errors import ModelError
from whence.threads import use_threads

REFERENCE = "base.json"
TINY_LLAMA = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
TINY_LLAMA_VOCABULARY = 2048


def choose_device(general: General) -> torch.device:
    """The device models run on.

    Raises:
        ModelError: ``general.device`` is ``cuda`` and there is none.
    """
    available = torch.cuda.is_available()
    if general.device == "cuda" and not available:
        raise ModelError("general.device is cuda, but torch sees no CUDA device; set it to auto or cpu")
    return torch.device("cuda" if available and general.device != "cpu" else "cpu")


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
            f"models.base.name: the folder {folder} holds no *.safetensors weights; save the model as such"
        )
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"models.base.name: the weights {file} are damaged ({_first_line(error)}); copy the file again"
            ) from error


def base_model_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The transformers configuration of a hub model or folder (no weights are loaded)."""
    try:
        found = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"models.base.name: cannot read the configuration of {name!r}: {_first_line(error)}; "
            "give a Hugging Face model name, or a folder with config.json, weights and tokenizer"
        ) from error
    if found.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"models.base.name: {name!r} is of type {found.model_type!r}, not a causal language model")
    return found


def write_base(config: Config, texts: list[str], folder: Path) -> None:
    """Write the base-model artifact: the built-in model itself, or a reference to the hub model or folder.

    Args:
        texts: training texts, of which the built-in model's tokenizer is learned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = config.models.base
    if base.name == BUILTIN_TINY_LLAMA:
        tokenizer = train_tokenizer(texts)
        network = tiny_llama(len(tokenizer), config.general.max_length, config.general.seed)
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        reference = {"name": base.name, "revision": base.revision}
        (folder / REFERENCE).write_text(json.dumps(reference, indent=1), encoding="utf-8")


def train_tokenizer(texts: list[str], vocabulary: int = TINY_LLAMA_VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learned of ``texts``, with Llama's special tokens; deterministic.

    Every byte is in its alphabet, so that no text is unknown to it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def tiny_llama(vocabulary: int, max_length: int, seed: int) -> LlamaForCausalLM:
    """The demo's base model: a Llama of about a million parameters with seeded random weights."""
    settings = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=max_length,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **TINY_LLAMA,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(settings)


def load_base(
    folder: Path, general: General, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the base model from its artifact; see :func:`load_model`."""
    name, revision = _base_source(folder)
    return load_model(name, general, revision, dtype)


def load_base_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load only the tokenizer of the base model."""
    return load_tokenizer(*_base_source(folder))


def empty_base(folder: Path) -> PreTrainedModel:
    """The base model's modules without weights (on the meta device), to check settings against its structure."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(base_model_config(*_base_source(folder)), trust_remote_code=False)


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
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {str(name)!r} has no end-of-text token, so answers would never end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides which token ids a text gets; padding and truncation, which calls change, are left out."""
    parts: dict[str, Any] = {"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        parts |= {name: backend[name] for name in ("normalizer", "pre_tokenizer", "post_processor", "model")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def load_model(
    name: str | Path, general: General, revision: str | None = None, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model in evaluation mode, on the chosen device and in the chosen precision.

    From now on torch computes on as many threads as pay for it, see :func:`whence.threads.use_threads`.

    Args:
        name: hub name or folder.
        dtype: precision that wins over ``general.dtype``: training wants float32 to begin with, since weights once
            rounded to bfloat16 do not come back.

    Raises:
        ModelError: model or tokenizer cannot be read or lack weights, or FlashAttention is asked for and not there.
    """
    device = choose_device(general)
    attention = "flash_attention_2" if general.use_flash_attention else "sdpa"
    try:
        network, report = AutoModelForCausalLM.from_pretrained(
            str(name),
            revision=revision,
            dtype=dtype or choose_dtype(general, device),
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except ImportError as error:
        raise ModelError(
            f"general.use_flash_attention: {_first_line(error)}; install flash-attn or set it to false"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"cannot load the model {str(name)!r}: {_first_line(error)}; "
            "a folder needs config.json and safetensors weights"
        ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:5])
        raise ModelError(f"the weights of {str(name)!r} lack {missing}; the model would answer from random weights")
    use_threads(network)
    return network.to(device).eval(), load_tokenizer(name, revision)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
