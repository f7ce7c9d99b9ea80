"""Our Gemma against Hugging Face transformers on tiny models of each generation with random weights.

What is compared and how closely: float32 logits 1e-5 (relative, L2) and 3e-5 (each), losses 1e-6, gradients of every
tensor 1e-5, and bfloat16 by its distance from float32, which may be 1.5 times theirs.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.trainer.twins import LIKE, B, S, Twins, config_of, in_bf16, relative, rows, twins
from trainer.model import SIZES, Gemma
from trainer.model.kernels import KERNELS

GENERATIONS = {generation: config_of(generation) for generation in (1, 2, 3)}
every_size = pytest.mark.parametrize("config", LIKE.values(), ids=LIKE.keys())
every_generation = pytest.mark.parametrize("config", GENERATIONS.values(), ids=GENERATIONS.keys())


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True, params=["reference", "sdpa", "documents"])
def kernel(request, monkeypatch):
    """Whatever computes attention, all here holds."""
    monkeypatch.setattr("trainer.model.gemma.sdpa", KERNELS[request.param])


def test_the_tiny_models_are_as_odd_as_the_released_ones() -> None:
    assert any(config.num_kv_heads == 1 for config in LIKE.values())
    assert any(1 < config.num_kv_heads < config.num_heads for config in LIKE.values())
    assert any(config.num_kv_heads == config.num_heads for config in LIKE.values())
    for config in LIKE.values():
        assert config.d_model != config.num_heads * config.head_dim
        assert config.d_ff != config.d_model  # a transposed matrix would fit
        if config.window is not None:
            assert config.num_layers % len(config.pattern)
            assert config.window * 2 < S
    for name, config in LIKE.items():
        if name in SIZES:  # the same switches as the size it stands for
            for switch in ("pattern", "attention_soft_cap", "final_soft_cap", "qk_norm", "post_norms",
                           "rope_base_local", "rope_base_global", "rope_scale_global"):  # fmt: skip
                assert getattr(config, switch) == getattr(SIZES[name], switch)
            by_width = SIZES[name].query_pre_attention != SIZES[name].head_dim
            assert (config.query_pre_attention != config.head_dim) == by_width


@every_size
@pytest.mark.parametrize("std", [0.02, 0.2, 1.0])
def test_logits_equal_transformers(config, std: float) -> None:
    both = twins(config, std)
    with torch.no_grad():
        logits, expected = both.ours(*rows()), both.theirs(rows()[0]).logits
    assert logits.dtype == torch.float32
    assert relative(logits, expected) <= 1e-5
    # Weights this large, where no cap bounds them, make logits of order 10 out of scores of order 1,000.
    scale = expected.square().mean().sqrt().item() if std == 1.0 and config.final_soft_cap is None else 1.0
    torch.testing.assert_close(logits, expected, rtol=3e-5, atol=3e-5 * scale)


def test_soft_caps_bite_where_logits_are_compared() -> None:
    """At std 1.0 a model without one of its caps is another model; at 0.02 nothing would be seen."""
    config = config_of(2)
    for uncapped in ({"attention_soft_cap": None}, {"final_soft_cap": None}):
        without = Gemma(dataclasses.replace(config, **uncapped))
        for std, least, most in ((0.02, 0.0, 1e-3), (1.0, 0.1, float("inf"))):
            both = twins(config, std)
            without.load_state_dict(both.ours.state_dict())
            with torch.no_grad():
                difference = relative(without(*rows()), both.theirs(rows()[0]).logits)
            assert least <= difference <= most, (uncapped, std)


@every_size
def test_rows_of_the_embedding_that_no_piece_has_change_no_logit(config) -> None:
    """Ours are padded to a multiple of 128, theirs end with the tokenizer's pieces."""
    words = 203
    both = twins(config, 0.2, words)
    with torch.no_grad():
        logits, expected = both.ours(*rows(words))[..., :words], both.theirs(rows(words)[0]).logits
    assert expected.shape[-1] == words
    assert relative(logits, expected) <= 1e-5


@every_generation
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logit(config, side: str) -> None:
    both = twins(config, 0.2)
    padding = 8
    real = torch.arange(S) >= padding if side == "left" else torch.arange(S) < S - padding
    real_BS = torch.stack([real, torch.ones(S, dtype=torch.bool)])
    tokens_BS = rows()[0] * real_BS
    positions_BS = (real_BS.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = both.ours(tokens_BS, real_BS.int(), positions_BS)
        expected = both.theirs(tokens_BS, attention_mask=real_BS.long(), position_ids=positions_BS).logits
        alone = both.ours(tokens_BS[:1, real], real_BS[:1, real].int(), positions_BS[:1, real])
    assert logits.isfinite().all()
    assert relative(logits[real_BS], expected[real_BS]) <= 1e-5
    assert relative(logits[0, real], alone[0]) <= 1e-5


# Parts of a block in the order of computation, ours -> theirs.
_PARTS = {
    "attention_norm": "input_layernorm",
    "attention": "self_attn",
    "attention_post_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward": "mlp",
    "feed_forward_post_norm": "post_feedforward_layernorm",
}
_PARTS_OF_1 = {
    "attention_norm": "input_layernorm",
    "attention": "self_attn",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward": "mlp",
}


def activations(both: Twins, tokens_BS: Tensor, segments_BS: Tensor, positions_BS: Tensor) -> dict[str, list[Tensor]]:
    """By name, in the order of computation, ours and theirs."""
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str):
        def hook(_module, _inputs, out):
            seen.setdefault(name, []).append(out[0] if isinstance(out, tuple) else out)

        return hook

    hooks = []
    for model, blocks, column in ((both.ours, both.ours.blocks, 0), (both.theirs, both.theirs.model.layers, 1)):
        hooks.append(
            blocks[0].register_forward_pre_hook(lambda _, x, **__: seen.setdefault("embedding", []).append(x[0]))
        )
        for number, block in enumerate(blocks):
            for names in (_PARTS if both.config.post_norms else _PARTS_OF_1).items():
                part = block.get_submodule(names[column])
                hooks.append(part.register_forward_hook(keep(f"blocks.{number}.{names[0]}")))
            hooks.append(block.register_forward_hook(keep(f"blocks.{number}")))
        norm = model.final_norm if column == 0 else model.model.norm
        hooks.append(norm.register_forward_hook(keep("final_norm")))
    with torch.no_grad():
        both.ours(tokens_BS, segments_BS, positions_BS)
        both.theirs(tokens_BS)
    for hook in hooks:
        hook.remove()
    return seen


def first_divergence(both: Twins, level: float) -> str | None:
    """The first part whose output differs by more, in the order of computation; None where none does."""
    for name, (ours, theirs) in activations(both, *rows()).items():
        if not relative(ours, theirs) <= level:
            return name
    return None


@every_size
@pytest.mark.parametrize("std", [0.02, 1.0])
def test_activations_equal_transformers_part_by_part(config, std: float) -> None:
    both = twins(config, std)
    parts = (6 if config.post_norms else 4) + 1
    assert len(activations(both, *rows())) == config.num_layers * parts + 2
    assert first_divergence(both, 1e-5) is None


@every_generation
@pytest.mark.parametrize(
    ("weight", "part"),
    [
        ("embedding.weight", "embedding"),
        ("blocks.1.attention_norm.weight", "blocks.1.attention_norm"),
        ("blocks.2.attention.v.weight", "blocks.2.attention"),
        ("blocks.1.feed_forward.up.weight", "blocks.1.feed_forward"),
        ("final_norm.weight", "final_norm"),
    ],
)
def test_a_divergence_is_named_where_it_begins(config, weight: str, part: str) -> None:
    both = twins(config, 0.2)
    with torch.no_grad():
        both.ours.get_parameter(weight).mul_(1.01)
    assert first_divergence(both, 1e-5) == part


def their_loss(both: Twins, tokens_BS: Tensor, targets_BS: Tensor, weights_BS: Tensor) -> Tensor:
    nll = torch.nn.functional.cross_entropy(
        both.theirs(tokens_BS).logits.flatten(0, 1), targets_BS.flatten(), reduction="none"
    )
    return (nll * weights_BS.flatten()).sum()


def gradients(both: Twins) -> dict[str, tuple[Tensor, Tensor]]:
    """Of every tensor, under our name: ours and theirs."""
    theirs = dict(both.theirs.named_parameters())
    return {
        name: (parameter.grad, theirs[both.names[name]].grad)  # type: ignore[misc]
        for name, parameter in both.ours.named_parameters()
    }


@every_size
def test_loss_and_gradients_equal_transformers(config) -> None:
    both = twins(config, 0.1)
    tokens_BS, segments_BS, positions_BS = rows()
    targets_BS = tokens_BS.roll(-1, 1)
    weights_BS = (torch.arange(B * S).view(B, S) % 5 > 0).float()
    loss = both.ours(tokens_BS, segments_BS, positions_BS, targets_BS, weights_BS)
    expected = their_loss(both, tokens_BS, targets_BS, weights_BS)
    loss.backward()
    expected.backward()
    assert relative(loss, expected) <= 1e-6
    assert (tokens_BS != 0).all()  # else they would give the padding row no gradient from the input side
    for name, (ours, theirs) in gradients(both).items():
        assert theirs.norm() > 0, name
        assert relative(ours, theirs) <= 1e-5, name


@every_generation
def test_gradients_equal_transformers_where_padding_is_read(config) -> None:
    """But for the embedding's padding row, to which transformers gives nothing from the input side, and we do."""
    both = twins(config, 0.1)
    tokens_BS, segments_BS, positions_BS = rows()
    tokens_BS[:, 4] = 0
    targets_BS, weights_BS = tokens_BS.roll(-1, 1), torch.ones(B, S)
    both.ours(tokens_BS, segments_BS, positions_BS, targets_BS, weights_BS).backward()
    their_loss(both, tokens_BS, targets_BS, weights_BS).backward()
    for name, (ours, theirs) in gradients(both).items():
        if name == "embedding.weight":
            assert relative(ours[0], theirs[0]) > 1e-2
            ours, theirs = ours[1:], theirs[1:]
        assert relative(ours, theirs) <= 1e-5, name


def packed_row() -> tuple[list[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Documents of very different lengths, one longer than two windows, and a row of them with padding at its end."""
    generator = torch.Generator().manual_seed(11)
    documents = [torch.randint(1, 256, (n,), generator=generator) for n in (13, 1, 23, 7)]
    padding = 6
    tokens = torch.cat([*documents, torch.zeros(padding, dtype=torch.long)])[None]
    segments = torch.cat([torch.full((len(d),), i + 1) for i, d in enumerate(documents)] + [torch.zeros(padding)])
    positions = torch.cat([torch.arange(len(d)) for d in documents] + [torch.arange(padding)])
    return documents, (tokens, segments.int()[None], positions[None])


@every_size
def test_packed_documents_equal_each_alone(config) -> None:
    both = twins(config, 0.3)
    documents, row = packed_row()
    with torch.no_grad():
        packed = both.ours(*row)[0]
        assert packed.isfinite().all()
        at = 0
        for document in documents:
            assert relative(packed[at : at + len(document)], both.theirs(document[None]).logits[0]) <= 1e-5
            at += len(document)


@every_size
def test_loss_and_gradients_of_packed_documents_are_the_sums_of_each_alone(config) -> None:
    both = twins(config, 0.1)
    documents, (tokens, segments, positions) = packed_row()
    targets = tokens.roll(-1, 1)
    weights = ((segments > 0) & (segments == segments.roll(-1, 1))).float()  # a document's last token predicts nothing
    loss = both.ours(tokens, segments, positions, targets, weights)
    loss.backward()
    expected = torch.stack(
        [their_loss(both, document[None, :-1], document[None, 1:], torch.ones(1, len(document) - 1))
         for document in documents if len(document) > 1]
    ).sum()  # fmt: skip
    expected.backward()
    assert relative(loss, expected) <= 1e-6
    for name, (ours, theirs) in gradients(both).items():
        if name == "embedding.weight":
            ours, theirs = ours[1:], theirs[1:]
        assert relative(ours, theirs) <= 1e-5, name


FAR = 20_000  # position of a row's first token


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_far_positions_equal_transformers(scale: float) -> None:
    """Scaling on global layers, on or off, shows far from the start of a document."""
    config = config_of(3, max_positions=131_072, rope_scale_global=scale)
    both = twins(config, 0.2)
    tokens_BS, segments_BS, positions_BS = rows()
    far_BS = positions_BS * 811 + FAR
    with torch.no_grad():
        expected = both.theirs(tokens_BS, position_ids=far_BS).logits
        assert relative(both.ours(tokens_BS, segments_BS, far_BS), expected) <= 1e-5
        other = Gemma(dataclasses.replace(config, rope_scale_global=9.0 - scale))
        other.load_state_dict(both.ours.state_dict())
        assert relative(other(tokens_BS, segments_BS, far_BS), expected) > 1e-2


@every_size
@pytest.mark.parametrize("std", [0.1, 1.0])
def test_bf16_is_as_close_to_fp32_as_transformers_is(config, std: float) -> None:
    both = twins(config, std)
    with torch.no_grad():
        exact = both.theirs(rows()[0]).logits
        in_bf16(both)
        our_error = relative(both.ours(*rows()), exact)
        their_error = relative(both.theirs(rows()[0]).logits, exact)
    assert 0 < our_error <= 1.5 * their_error
