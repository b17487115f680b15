"""Modules that see the same input have one covariance of it, and their factors are those of stock kronfluence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from influence_helpers import settings, tiny_examples, tiny_llama, trained
from influence_reference import stock_analyzer
from kronfluence.arguments import FactorArguments
from transformers import AutoModelForCausalLM, GPTJConfig, PreTrainedModel

from whence.errors import FactorError
from whence.influence import fit
from whence.influence.factors import fit_factors, load_factors
from whence.influence.shared import SharedInput

TRAIN = tiny_examples(11, seed=1)
EVERYWHERE = {"factors__modules": ["*layers.*_proj"], "factors__use_empirical_fisher": True, "factors__batch_size": 3}


def llama() -> PreTrainedModel:
    return tiny_llama(torch.float32)


def gptj() -> PreTrainedModel:
    """Its modules are defined in another order than they are called in, and attention and MLP see one input."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 29, "n_embd": 12, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "n_positions": 64}
    return AutoModelForCausalLM.from_config(GPTJConfig(**sizes, bos_token_id=1, eos_token_id=1)).eval()


@pytest.mark.parametrize(
    ("make", "pattern", "shared"),
    [(llama, ["*layers.*_proj"], {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}),
     (gptj, ["*.h.*_proj", "*.h.*fc_*"], {"k_proj": "q_proj", "v_proj": "q_proj"})],
)  # fmt: skip
def test_factors_are_those_of_stock_kronfluence_and_say_what_is_shared(tmp_path: Path, make, pattern, shared) -> None:
    config = settings(**EVERYWHERE | {"factors__modules": pattern})
    info = fit_factors(trained(make(), TRAIN, config), tmp_path / "f")
    found = {(name.split(".")[-1], first.split(".")[-1]) for name, first in info.shared_inputs.items()}
    assert found == set(shared.items())
    assert len(info.shared_inputs) == 2 * len(shared), "in each of two layers"

    stock = stock_analyzer(make(), info.modules, tmp_path / "stock", collate_fn=TRAIN.collate)
    stock.fit_all_factors("ekfac", TRAIN, 5, factor_args=FactorArguments(use_empirical_fisher=True))
    ours, theirs = load_factors(tmp_path / "f"), stock.load_all_factors("ekfac")
    for name in ("activation_eigenvalues", "gradient_eigenvalues", "lambda_matrix"):
        for module in info.modules:
            error = (ours[name][module] - theirs[name][module]).norm() / theirs[name][module].norm()
            assert error < 1e-3, (name, module, error)
    for module, first in info.shared_inputs.items():
        assert torch.equal(*(ours["activation_eigenvectors"][name] for name in (module, first)))


def test_an_input_is_decomposed_once_however_the_modules_are_divided(tmp_path: Path, monkeypatch) -> None:
    decomposed: list[str] = []
    real = fit.symmetric_eigen
    monkeypatch.setattr(fit, "symmetric_eigen", lambda matrix, what: decomposed.append(what) or real(matrix, what))
    for groups in (None, 14):
        config = settings(
            **EVERYWHERE, factors__covariance_module_partitions=groups, factors__lambda_module_partitions=groups
        )
        fit_factors(trained(llama(), TRAIN, config), tmp_path / str(groups))
        assert sum(what.startswith("activation") for what in decomposed) == 2 * 4  # q, o, gate, down
        assert sum(what.startswith("gradient") for what in decomposed) == 2 * 7
        decomposed.clear()
    whole, divided = (load_factors(tmp_path / str(groups)) for groups in (None, 14))
    for name, tensors in whole.items():
        for module, tensor in tensors.items():
            torch.testing.assert_close(divided[name][module], tensor, rtol=1e-4, atol=1e-6)


def test_an_input_is_prepared_and_rotated_once_for_all_that_see_it() -> None:
    shared, inputs, right = SharedInput(members=2), torch.randn(2, 5, 3), torch.randn(3, 3)
    values = shared.prepared(inputs[:, 1:4], lambda piece: piece.double().float())
    assert shared.prepared(inputs[:, 1:4].detach(), lambda piece: pytest.fail("made again")) is values
    rotated = shared.rotated(values, right)
    assert shared.rotated(values, right) is rotated
    torch.testing.assert_close(rotated, inputs[:, 1:4] @ right)
    torch.testing.assert_close(shared.rotated(values, 2 * right), 2 * rotated)
    inputs.mul_(2)
    assert shared.prepared(inputs[:, 1:4], torch.clone) is not values, "it was changed in between"
    shared.done()
    shared.done()
    assert shared._values is None, "nothing is held when all are done"


def test_modules_that_see_different_inputs_after_all_are_refused() -> None:
    shared = SharedInput(members=2)
    for batch in torch.randn(2, 1, 4, 3):
        shared.meet("gate_proj", batch)
        shared.meet("up_proj", batch)
    shared.meet("gate_proj", torch.zeros(1, 4, 3))
    with pytest.raises(FactorError, match="module up_proj sees another input"):
        shared.meet("up_proj", torch.ones(1, 4, 3))
