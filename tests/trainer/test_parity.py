"""Our Gemma against Hugging Face transformers, in float32, on tiny models of each generation with random weights.

Weights are large and norms non-zero on purpose: soft caps saturate and a missing 1 + w shows. The shapes keep what is
odd about the released ones: head_dim is not d_model / num_heads, layers do not fill the pattern, the window is shorter
than the row, key heads are one or shared.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from trainer.export.hf import hf_config
from trainer.export.hf_weights import hf_names
from trainer.model import Gemma, GemmaConfig

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
B, S = 2, 29


def config_of(generation: int, **changes) -> GemmaConfig:
    shape = {
        "generation": generation,
        "vocab_size": 256,
        "d_model": 48,
        "d_ff": 80,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "query_pre_attention": 16,
        "max_positions": 8192,
    }
    by_generation = {
        1: {"num_layers": 3, "num_kv_heads": 1, "pattern": ("global",), "window": None},
        2: {
            "num_layers": 5,
            "pattern": ("local", "global"),
            "window": 10,
            "attention_soft_cap": 50.0,
            "final_soft_cap": 30.0,
            "post_norms": True,
            "query_pre_attention": 12,
        },
        3: {
            "num_layers": 8,
            "pattern": ("local",) * 5 + ("global",),
            "window": 10,
            "post_norms": True,
            "qk_norm": True,
            "rope_base_global": 1_000_000.0,
            "rope_scale_global": 8.0,
            "query_pre_attention": 12,
        },
    }
    return GemmaConfig(**(shape | by_generation[generation] | changes))


def pair(config: GemmaConfig, std: float):
    """Both models with the same random weights, norms included."""
    import transformers

    kinds = {1: "GemmaConfig", 2: "Gemma2Config", 3: "Gemma3TextConfig"}
    models = {1: "GemmaForCausalLM", 2: "Gemma2ForCausalLM", 3: "Gemma3ForCausalLM"}
    content = hf_config(config, config.vocab_size)
    theirs_config = getattr(transformers, kinds[config.generation])(**content)
    theirs_config._attn_implementation = "eager"
    theirs = getattr(transformers, models[config.generation])(theirs_config).eval()
    ours = Gemma(config)
    generator = torch.Generator().manual_seed(7)
    their_parameters = dict(theirs.named_parameters())
    names = hf_names(config)
    assert set(names) == {name for name, _ in ours.named_parameters()}
    assert set(names.values()) == set(their_parameters)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            width = 0.5 if parameter.ndim == 1 else std
            parameter.normal_(0.0, width, generator=generator)
            their_parameters[names[name]].copy_(parameter)
    return ours, theirs


def rows(config: GemmaConfig) -> tuple[Tensor, Tensor, Tensor]:
    tokens_BS = torch.randint(1, config.vocab_size, (B, S), generator=torch.Generator().manual_seed(3))
    return tokens_BS, torch.ones(B, S, dtype=torch.int32), torch.arange(S, dtype=torch.int32).expand(B, S)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("generation", [1, 2, 3])
@pytest.mark.parametrize("std", [0.02, 1.0], ids=["small weights", "saturating weights"])
def test_logits_equal_transformers(generation: int, std: float) -> None:
    config = config_of(generation)
    ours, theirs = pair(config, std)
    tokens_BS, segments_BS, positions_BS = rows(config)
    with torch.no_grad():
        logits = ours(tokens_BS, segments_BS, positions_BS)
        expected = theirs(tokens_BS).logits
    assert logits.dtype == torch.float32
    if std == 0.02:
        assert (logits - expected).abs().max() <= 3e-5
    assert relative(logits, expected) <= 1e-5


@pytest.mark.parametrize("generation", [1, 2, 3])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_every_sharing_of_key_heads_equals_transformers(generation: int, kv_heads: int) -> None:
    config = config_of(generation, num_kv_heads=kv_heads)
    ours, theirs = pair(config, 0.2)
    with torch.no_grad():
        assert relative(ours(*rows(config)), theirs(rows(config)[0]).logits) <= 1e-5


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_gradients_equal_transformers(generation: int) -> None:
    config = config_of(generation)
    ours, theirs = pair(config, 0.1)
    tokens_BS, segments_BS, positions_BS = rows(config)
    targets_BS = tokens_BS.roll(-1, 1)
    weights_BS = (torch.arange(B * S).view(B, S) % 5 > 0).float()
    loss = ours(tokens_BS, segments_BS, positions_BS, targets_BS, weights_BS)
    nll = torch.nn.functional.cross_entropy(
        theirs(tokens_BS).logits.flatten(0, 1), targets_BS.flatten(), reduction="none"
    )
    expected = (nll * weights_BS.flatten()).sum()
    loss.backward()
    expected.backward()
    assert relative(loss, expected) <= 1e-6
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    names = hf_names(config)
    for name, parameter in ours.named_parameters():
        ours_grad, theirs_grad = parameter.grad, their_gradients[names[name]]
        if name == "embedding.weight":  # transformers gives the padding row no gradient from the input side
            ours_grad, theirs_grad = ours_grad[1:], theirs_grad[1:]
        assert relative(ours_grad, theirs_grad) <= 1e-5, name


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_packed_documents_equal_each_alone(generation: int) -> None:
    config = config_of(generation)
    ours, theirs = pair(config, 0.3)
    generator = torch.Generator().manual_seed(11)
    documents = [torch.randint(1, 256, (n,), generator=generator) for n in (13, 1, 21, 7)]
    padding = 6
    tokens = torch.cat([*documents, torch.zeros(padding, dtype=torch.long)])[None]
    segments = torch.cat([torch.full((len(d),), i + 1) for i, d in enumerate(documents)] + [torch.zeros(padding)])
    positions = torch.cat([torch.arange(len(d)) for d in documents] + [torch.arange(padding)])
    with torch.no_grad():
        packed = ours(tokens, segments.int()[None], positions.int()[None])[0]
        assert packed.isfinite().all()
        at = 0
        for document in documents:
            assert relative(packed[at : at + len(document)], theirs(document[None]).logits[0]) <= 1e-5
            at += len(document)


def test_long_positions_equal_transformers() -> None:
    """Scaling on global layers only shows far from the start of a document."""
    config = config_of(3, max_positions=131_072)
    ours, theirs = pair(config, 0.2)
    tokens_BS, segments_BS, positions_BS = rows(config)
    far_BS = positions_BS * 811 + 20_000
    with torch.no_grad():
        expected = theirs(tokens_BS, position_ids=far_BS.long()).logits
        assert relative(ours(tokens_BS, segments_BS, far_BS), expected) <= 1e-5
        unscaled = Gemma(config_of(3, rope_scale_global=1.0))
        unscaled.load_state_dict(ours.state_dict())
        assert relative(unscaled(tokens_BS, segments_BS, far_BS), expected) > 1e-3


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_bf16_is_as_close_to_fp32_as_transformers_is(generation: int) -> None:
    config = config_of(generation)
    ours, theirs = pair(config, 0.1)
    tokens_BS, segments_BS, positions_BS = rows(config)
    with torch.no_grad():
        exact = theirs(tokens_BS).logits
        our_error = relative(ours.bfloat16()(tokens_BS, segments_BS, positions_BS), exact)
        their_error = relative(theirs.bfloat16()(tokens_BS).logits.float(), exact)
    assert our_error <= 1.5 * their_error
