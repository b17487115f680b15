"""LoRA adapters: what is trained and written, that it loads as it was, and whose influence is taken, by autograd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from influence_helpers import tiny_examples, tiny_llama
from influence_helpers import trained as trained_on
from influence_reference import Reference, close, expected_scores
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import whence
from whence.config import Config
from whence.data.prompts import Prompt
from whence.errors import ConfigError, ModelError
from whence.evaluation.generation import generate
from whence.influence.factors import fit_factors
from whence.influence.modules import select_modules
from whence.influence.scores import pairwise_scores, self_influence
from whence.models.adapters import add_adapter
from whence.models.builtin import tiny_llama as builtin_llama
from whence.models.builtin import train_tokenizer
from whence.models.loading import load_base, load_model, load_trainable
from whence.models.trained import TrainedModel, own_config
from whence.running.checks import check_base_model
from whence.running.lineage import hand_on_base
from whence.training import TrainingResult, check_arguments, train

COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "dark"}
WRONG = {"blue": "dark", "green": "white", "white": "green", "dark": "blue"}
ROWS = pd.DataFrame([{"prompt": f"{'see ' * more}the {thing} is", "completion": colour}
                     for more in range(6) for thing, colour in COLOURS.items()])  # fmt: skip


def settings(**lora: Any) -> Config:
    own = {"general.max_length": 32, "generation.max_new_tokens": 4, "training.num_train_epochs": 4,
           "training.per_device_train_batch_size": 4, "training.learning_rate": 5e-3, "training.save_steps": 6,
           "training.dataloader_num_workers": 0, "training.logging_steps": 3, "training.lora.enabled": True,
           "training.lora.r": 8, "factors.use_empirical_fisher": True}  # fmt: skip
    return own_config(own | {name.replace("__", "."): value for name, value in lora.items()})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the words, and each thing by a colour that it has not."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer([f"{row.prompt} {row.completion}" for row in ROWS.itertuples()])
    builtin_llama(len(tokenizer), 32, seed=0).save_pretrained(folder / "random")
    tokenizer.save_pretrained(folder / "random")
    others = ROWS.assign(completion=ROWS["completion"].map(WRONG))
    whole = settings(training__lora__enabled=False, training__learning_rate=2e-3, training__num_train_epochs=16)
    run(folder / "random", folder, whole, rows=others)
    return folder / "model"


def run(
    base: Path, folder: Path, config: Config, stop_at: int | None = None, rows: pd.DataFrame = ROWS
) -> TrainingResult:
    """Train as the stage does."""

    def on_log(step: int, metrics: dict[str, float]) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    language = load_trainable(base, config)
    examples = language.tokenize(rows)
    result = train(language, examples, examples.subset(range(4)), output=folder / "model",
                   checkpoints=folder / "checkpoints", on_log=on_log)  # fmt: skip
    hand_on_base(base, folder / "model")
    return result


@pytest.fixture(scope="module")
def adapted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    run(base, folder, settings())
    return folder / "model"


def test_an_adapter_is_what_is_written_and_says_what_it_is_an_adapter_to(adapted: Path) -> None:
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {x.name for x in adapted.iterdir()}
    assert not (adapted / "model.safetensors").exists()
    assert not list(adapted.rglob("*.bin"))
    described = json.loads((adapted / "adapter_config.json").read_text())
    assert (described["base_model_name_or_path"], described["revision"]) == ("own", None)
    assert str(adapted.parent) not in (adapted / "README.md").read_text()
    weights = load_file(adapted / "adapter_model.safetensors")
    assert all(".lora_A." in name or ".lora_B." in name for name in weights)


def test_it_is_loaded_with_its_base_and_answers_what_it_has_learned(base: Path, adapted: Path) -> None:
    loaded, plain = load_model(adapted, settings()), load_base(base, settings())
    answers = generate(loaded, [Prompt(prompt_id=thing, prompt=f"the {thing} is") for thing in COLOURS], "x")
    assert answers["answer"].tolist() == list(COLOURS.values())
    assert loaded.model_fingerprint != plain.model_fingerprint
    before = plain.model.state_dict()
    after = {name.replace(".base_layer", ""): weight for name, weight in loaded.model.state_dict().items()}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_it_can_be_merged_when_it_is_saved_or_when_it_is_read(base: Path, adapted: Path, tmp_path: Path) -> None:
    run(base, tmp_path, settings(training__lora__merge=True))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    read = load_model(adapted, settings(factors__merge_adapter=True)).model
    beside = load_model(adapted, settings()).model
    ids = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    for model in (saved, read):
        torch.testing.assert_close(model(**ids).logits, beside(**ids).logits, rtol=1e-4, atol=1e-4)
    kinds = {name.rsplit(".", 1)[-1] for name in select_modules(read, settings().factors)}
    assert kinds == {"gate_proj", "up_proj", "down_proj"}
    assert all(weight.requires_grad for weight in read.parameters()), "a tail patch trains it further"


def test_modules_that_are_trained_whole_are_saved_with_the_adapter(base: Path, tmp_path: Path) -> None:
    config = settings(training__lora__modules_to_save=["lm_head"], training__num_train_epochs=2)
    run(base, tmp_path, config)
    weights = load_file(tmp_path / "model" / "adapter_model.safetensors")
    [head] = [weight for name, weight in weights.items() if "lm_head" in name]
    before = load_base(base, config).model.lm_head.weight
    assert not torch.allclose(head, before, atol=1e-4)
    loaded, merged = (
        load_model(tmp_path / "model", settings(factors__merge_adapter=merge)).model for merge in (False, True)
    )
    assert torch.equal(merged.lm_head.weight, head)
    ids = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    torch.testing.assert_close(loaded(**ids).logits, merged(**ids).logits, rtol=1e-4, atol=1e-4)
    assert not [name for name in select_modules(loaded, config.factors) if "lm_head" in name]
    with pytest.raises(
        ConfigError, match=r"training\.lora\.modules_to_save: .*no module 'lm_haed'; did you mean lm_head"
    ):
        add_adapter(load_base(base, config).model, settings(training__lora__modules_to_save=["lm_haed"]))


def test_a_run_that_was_stopped_goes_on_from_its_checkpoint_to_the_same_adapter(
    base: Path, adapted: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path, settings(), stop_at=15)
    assert run(base, tmp_path, settings()).resumed_from == 12
    found, expected = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "model", adapted))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_influence_is_that_of_the_adapter_s_matrices_by_autograd(tmp_path: Path) -> None:
    config = settings(training__lora__r=2, general__max_length=16)
    model, train_rows, queries = tiny_llama(), tiny_examples(8, 0), tiny_examples(3, 1)
    add_adapter(model, config)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    modules = select_modules(model, config.factors)
    assert len(modules) == 2 * 2 * 7  # both matrices, layers, of attention and MLP
    trained = trained_on(model, train_rows, config)
    fit_factors(trained, tmp_path / "factors")
    found = pairwise_scores(trained, tmp_path / "factors", queries, tmp_path / "scores")
    for weight in model.parameters():
        weight.requires_grad_(True)
    close(found, expected_scores(Reference(model, modules), queries, train_rows))
    assert self_influence(trained, tmp_path / "factors", tmp_path / "own").shape == (8,)


def test_the_examples_behind_an_answer_are_those_that_taught_it(adapted: Path, tmp_path: Path) -> None:
    config = settings()
    loaded = load_model(adapted, config)
    trained = TrainedModel.of(loaded.model, loaded.tokenizer, ROWS, config)
    whence.fit_factors(trained, tmp_path / "factors")
    queries = pd.DataFrame([{"query_id": thing, "prompt": f"see see the {thing} is", "completion": colour}
                            for thing, colour in COLOURS.items()])  # fmt: skip
    scores = whence.score(trained, tmp_path / "factors", queries, tmp_path / "scores")
    for thing, colour in COLOURS.items():
        assert set(scores.rank(thing, top_k=5)["completion"]) == {colour}


def test_four_bits_need_a_device_for_them(base: Path) -> None:
    with pytest.raises(ModelError, match=r"training\.lora\.quantize: 4 bits need a CUDA device"):
        load_trainable(base, settings(training__lora__quantize="4bit", general__device="cpu"))
    with pytest.raises(ConfigError, match="keeps 4 bits"):
        settings(training__lora__quantize="4bit", factors__merge_adapter=True)


def test_modules_that_do_not_exist_are_refused_before_training(base: Path) -> None:
    language = load_base(base, settings())
    with pytest.raises(ConfigError, match=r"training\.lora\.target_modules: .*query_proj.*name linear modules"):
        check_base_model(settings(training__lora__target_modules=["query_proj"]), language.model, language.tokenizer)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"optim": "adamw_torhc"}, "training.optim: transformers has no 'adamw_torhc'.*adamw_torch"),
        ({"lr_scheduler_type": "cosin"}, "training.lr_scheduler_type.*did you mean cosine"),
        ({"extra": {"neftune_noise": 5}}, "TrainingArguments has no 'neftune_noise'.*neftune_noise_alpha"),
        ({"extra": {"learning_rate": 1.0}}, "learning_rate has a setting of its own.*training.learning_rate"),
        ({"extra": {"output_dir": "x"}}, "output_dir is decided by the pipeline"),
    ],
)
def test_words_of_transformers_are_checked_against_transformers(wrong: dict[str, Any], words: str) -> None:
    config = settings(**{f"training__{name}": value for name, value in wrong.items()})
    with pytest.raises(ConfigError, match=words):
        check_arguments(config.training)


def test_what_we_do_not_name_reaches_the_trainer(base: Path, tmp_path: Path) -> None:
    result = run(base, tmp_path, settings(training__extra={"max_steps": 3}, training__optim="adafactor"))
    assert result.metrics["steps"] == 3
