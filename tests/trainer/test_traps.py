"""Traps that others fell into, each sprung once: what is compared here must see it.

A check gives an error over the level that it is held to. It must be at most 1 for the model as it is, and more once one
place is put wrong in the way that a trap does. Sources stand beside the traps.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data_pipeline.tokenizer import Tokenizer, train
from tests.trainer.twins import LIKE, S, Twins, config_of, in_bf16, relative, rows, twins, writers
from trainer.export import hf
from trainer.model import GemmaConfig, gemma, generate, kernels, layers
from trainer.model.attention import Attention, Rows
from trainer.model.kernels import visible
from trainer.model.layers import RMSNorm, rope_tables, soft_cap

Check = Callable[[], float]
Spring = Callable[[pytest.MonkeyPatch], None]
FAR = 20_000


pytestmark = pytest.mark.usefixtures("one_thread")


# Checks.


def far_rows() -> tuple[Tensor, Tensor, Tensor]:
    tokens_BS, segments_BS, positions_BS = rows()
    return tokens_BS, segments_BS, positions_BS * 811 + FAR


def difference(both: Twins, row: tuple[Tensor, Tensor, Tensor]) -> float:
    with torch.no_grad():
        return relative(both.ours(*row), both.theirs(row[0], position_ids=row[2]).logits)


def logits(size: str, row: Callable[[], tuple[Tensor, Tensor, Tensor]] = rows) -> Check:
    """Float32 logits against transformers, for small, common and saturating weights."""
    return lambda: max(difference(twins(LIKE[size], std), row()) for std in (0.02, 0.2, 1.0)) / 1e-5


def bf16(size: str, row: Callable[[], tuple[Tensor, Tensor, Tensor]] = rows) -> Check:
    """Distance of bfloat16 logits from transformers' float32 ones, over 1.5 times theirs."""

    def check() -> float:
        both = twins(LIKE[size], 0.1)
        with torch.no_grad():
            exact = both.theirs(row()[0], position_ids=row()[2]).logits
            in_bf16(both)
            ours, theirs = both.ours(*row()), both.theirs(row()[0], position_ids=row()[2]).logits
        return relative(ours, exact) / (1.5 * relative(theirs, exact))

    return check


def share_unequal(ours: Tensor, theirs: Tensor) -> float:
    assert ours.dtype == theirs.dtype == torch.bfloat16
    return (ours != theirs).float().mean().item()


def norm_in_bf16() -> float:
    """Values of a norm that are not transformers' bit for bit: both round a float32 result once."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

    generator = torch.Generator().manual_seed(0)
    ours, theirs = RMSNorm(4096, 1e-6).bfloat16(), Gemma3RMSNorm(4096).bfloat16()
    with torch.no_grad():
        ours.weight.normal_(0, 0.02, generator=generator)
        theirs.weight.copy_(ours.weight)
        x = torch.randn(32, 4096, generator=generator).bfloat16()
        return share_unequal(ours(x), theirs(x)) / 1e-3


def embedding_in_bf16() -> float:
    """Values of the first block's input that are not transformers' bit for bit; the root of 48 is not one of bf16."""
    both, seen = twins(LIKE["gemma_2b"], 0.2), []
    in_bf16(both)
    for block in (both.ours.blocks[0], both.theirs.model.layers[0]):
        block.register_forward_pre_hook(lambda _, inputs, **__: seen.append(inputs[0]))
    difference(both, rows())
    return share_unequal(*seen) / 1e-3


def loss() -> float:
    both = twins(LIKE["gemma2_2b"], 1.0)
    tokens_BS, segments_BS, positions_BS = rows()
    targets_BS = tokens_BS.roll(-1, 1)
    with torch.no_grad():
        ours = both.ours(tokens_BS, segments_BS, positions_BS, targets_BS)
        theirs = F.cross_entropy(both.theirs(tokens_BS).logits.flatten(0, 1), targets_BS.flatten(), reduction="sum")
    return relative(ours, theirs) / 1e-6


def local_layers(generation: int) -> Check:
    """Layers that an export calls local and transformers does not, or the other way round."""

    def check() -> float:
        config = config_of(generation, num_layers=26)
        said = hf.hf_config(config, 256)["layer_types"]
        known = twins(config, 0.02).theirs.config.layer_types
        return 0.0 if said == known else math.inf

    return check


WORDS = 203  # pieces, fewer than embedding rows


def text() -> float:
    """Rows of greedy text that are not transformers', prompts of different lengths and some beyond the window."""
    both = writers(LIKE["gemma3_27b"], WORDS)
    prompts = [[2, *row[:n].tolist()] for row, n in zip(rows(WORDS)[0], (5, 24), strict=True)]
    ours = zip(*generate.greedy(both.ours, prompts, 24, WORDS), strict=True)
    theirs = [
        both.theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    return 0.0 if [list(ids) for ids in ours] == theirs else math.inf


@functools.cache
def tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.model")
        lines = (
            "How do you dry a wet sail? Hang it in the wind.",
            "How do you mend a torn kite? Glue paper on 42 holes.",
        )
        path.write_bytes(train(lines * 40, 370))
        return Tokenizer.load(path)


def scores() -> float:
    """Log-likelihoods of the harness against transformers' of the same text behind one BOS."""
    from lm_eval.api.instance import Instance

    from trainer.evaluate.harness import GemmaLM

    pieces = tokenizer()
    both = twins(dataclasses.replace(LIKE["gemma3_1b"], vocab_size=384), 0.3, pieces.vocab_size)
    pairs = [("How do you dry a wet sail?", " Hang it in the wind."), ("How do you", " dry it?"), ("wet sail", " 42")]
    ours = GemmaLM(both.ours, pieces, 4096, 512).loglikelihood(
        [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    )
    errors = []
    for (context, continuation), (value, _) in zip(pairs, ours, strict=True):
        ids = [pieces.bos, *pieces.encode(context + continuation)]
        first = 1 + len(pieces.encode(context))
        with torch.no_grad():
            log_p = both.theirs(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        wanted = sum(log_p[place - 1, ids[place]].item() for place in range(first, len(ids)))
        errors.append(abs(value - wanted) / abs(wanted))
    return max(errors) / 1e-5


def hub() -> float:
    """Files of the task pack that would fetch a data set or a metric where they are loaded."""
    from trainer.evaluate import harness

    files = [file for kind in ("*.py", "*.yaml") for file in Path(harness.TASKS).glob(kind)]
    assert files
    fetching = ("dataset_path:", "load_dataset(", "evaluate.load(")
    return math.inf if any(word in file.read_text() for file in files for word in fetching) else 0.0


# Springs: one place put wrong.


def gelu_exact(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layers, "F", SimpleNamespace(**{**vars(F), "gelu": lambda x, approximate: F.gelu(x)}))


def norm(wrong: Callable[[Tensor, Tensor, float], Tensor]) -> Spring:
    def forward(self: RMSNorm, x: Tensor) -> Tensor:
        return wrong(x, self.weight, self.eps).to(x.dtype)

    return lambda patch: patch.setattr(RMSNorm, "forward", forward)


def norm_sum_in_weight_dtype(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, (1.0 + weight).float(), eps)


def norm_product_rounded(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype) * (1.0 + weight)


def norm_without_one(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps)


def embedding_scale_unrounded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gemma, "_rounded", lambda value, dtype: value)


def rope(wrong: Callable[[Tensor, int, float, float], tuple[Tensor, Tensor]]) -> Spring:
    return lambda patch: patch.setattr(gemma, "rope_tables", wrong)


def rope_angles_in_bf16(positions_BS: Tensor, head_dim: int, base: float, scale: float) -> tuple[Tensor, Tensor]:
    frequencies_P = 1.0 / (base ** (torch.arange(0, head_dim, 2) / head_dim)) / scale
    angles_BS1P = positions_BS[:, :, None, None].bfloat16() * frequencies_P.bfloat16()
    return angles_BS1P.float().cos(), angles_BS1P.float().sin()


def built_otherwise(**changes: Any) -> Spring:
    """Attention made for another configuration than the model's."""
    init = Attention.__init__

    def wrong(self: Attention, config: GemmaConfig) -> None:
        init(self, dataclasses.replace(config, **changes))

    return lambda patch: patch.setattr(Attention, "__init__", wrong)


def cap_after_mask(patch: pytest.MonkeyPatch) -> None:
    def wrong(visible_BST, q_BSNH, k_BTKH, v_BTKH, cap, scale):
        k_BTNH, v_BTNH = (x.repeat_interleave(q_BSNH.shape[2] // x.shape[2], 2) for x in (k_BTKH, v_BTKH))
        scores_BNST = torch.einsum("bsnh,btnh->bnst", q_BSNH, k_BTNH) * scale
        scores_BNST = soft_cap(scores_BNST.masked_fill(~visible_BST[:, None], torch.finfo(torch.float32).min), cap)
        return torch.einsum("bnst,btnh->bsnh", scores_BNST.softmax(-1), v_BTNH)

    patch.setattr(kernels, "attend_reference", wrong)


def final_cap_missing_in_loss(patch: pytest.MonkeyPatch) -> None:
    right = gemma.token_loss
    patch.setattr(gemma, "token_loss", lambda *inputs: right(*inputs[:4], None, *inputs[5:]))


def window(wrong: Callable[[int], int]) -> Spring:
    def other(segments_BS: Tensor, reach: int | None, rows: Rows) -> Tensor:
        return visible(segments_BS, reach if reach is None else wrong(reach), rows)

    return lambda patch: patch.setattr(kernels, "visible", other)


def kinds(wrong: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Spring:
    right = GemmaConfig.layer_kinds.fget
    assert right is not None
    return lambda patch: patch.setattr(GemmaConfig, "layer_kinds", property(lambda config: wrong(right(config))))


def inverted(kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple({"local": "global", "global": "local"}[kind] for kind in kinds)


def shifted(kinds: tuple[str, ...]) -> tuple[str, ...]:
    return kinds[1:] + kinds[:1]


def scaled_by_head_width(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GemmaConfig, "query_scale", property(lambda config: config.head_dim**-0.5))


def exported(**changes: Any) -> Spring:
    """config.json says something else."""
    right = hf.hf_config

    def wrong(config: GemmaConfig, vocab_size: int) -> dict[str, Any]:
        content = right(config, vocab_size)
        assert all(name in content for name in changes)
        return content | {name: change(config) if callable(change) else change for name, change in changes.items()}

    return lambda patch: patch.setattr("trainer.export.hf_config.hf_config", wrong)


def cache_that_forgets_its_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(generate._Cache, "first", lambda self, positions: self._done * 0)


def cache_that_sees_padding(patch: pytest.MonkeyPatch) -> None:
    def blind(segments_BS: Tensor, reach: int | None, rows: Rows) -> Tensor:
        return visible(torch.ones_like(segments_BS), reach, rows)

    patch.setattr(kernels, "visible", blind)


def text_of_all_rows(patch: pytest.MonkeyPatch) -> None:
    right = generate.greedy
    patch.setattr(
        generate, "greedy", lambda model, prompts, most, words: right(model, prompts, most, model.config.vocab_size)
    )


def score_without_bos(patch: pytest.MonkeyPatch) -> None:
    from trainer.evaluate.harness import GemmaLM

    patch.setattr(GemmaLM, "_encode_pair", lambda self, context, rest: super(GemmaLM, self)._encode_pair(context, rest))


def score_with_bos_as_text(patch: pytest.MonkeyPatch) -> None:
    from trainer.evaluate.harness import GemmaLM

    patch.setattr(
        GemmaLM,
        "_encode_pair",
        lambda self, context, rest: super(GemmaLM, self)._encode_pair("<bos>" + context, rest),
    )


def score_over_all_rows(patch: pytest.MonkeyPatch) -> None:
    from trainer.evaluate.harness import GemmaLM

    right = GemmaLM._logits

    def wrong(self: Any, rows: list[list[int]]) -> Tensor:
        pieces, self.pieces = self.pieces, SimpleNamespace(pad=self.pieces.pad, vocab_size=None)
        try:
            return right(self, rows)
        finally:
            self.pieces = pieces

    patch.setattr(GemmaLM, "_logits", wrong)


def tasks_of_the_library(patch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    from trainer.evaluate import harness

    patch.setattr(harness, "TASKS", Path(lm_eval.tasks.__file__).parent / "humaneval")


TRAPS: dict[str, tuple[Check, Spring]] = {
    # HF PR 29402, gemma_pytorch PR 37, vLLM issue 3411
    "exact GELU instead of tanh": (logits("gemma_2b"), gelu_exact),
    "exported with exact GELU": (logits("gemma3_1b"), exported(hidden_activation="gelu")),
    # HF PR 29402, vLLM PR 3653, gemma_pytorch PR 67
    "1 + w in bf16": (norm_in_bf16, norm(norm_sum_in_weight_dtype)),
    "product with 1 + w in bf16": (norm_in_bf16, norm(norm_product_rounded)),
    # Gemma 3n and 4 have no + 1
    "norm without + 1": (logits("gemma3_27b"), norm(norm_without_one)),
    # HF PR 29402, gemma_pytorch PR 67
    "embedding scale kept in fp32": (embedding_in_bf16, embedding_scale_unrounded),
    # HF PR 29285, litgpt issue 1031
    "RoPE angles in bf16": (bf16("gemma_2b", far_rows), rope(rope_angles_in_bf16)),
    "RoPE angles in bf16, scaled": (bf16("gemma3_27b", far_rows), rope(rope_angles_in_bf16)),
    # transformers raises where SDPA would leave the cap out; older versions did not
    "attention without its soft cap": (logits("gemma2_2b"), built_otherwise(attention_soft_cap=None)),
    "soft cap after the mask": (logits("gemma2_2b"), cap_after_mask),
    "loss without the final soft cap": (loss, final_cap_missing_in_loss),
    "exported without the attention's soft cap": (logits("gemma2_2b"), exported(attn_logit_softcapping=None)),
    "exported without the final soft cap": (logits("gemma2_2b"), exported(final_logit_softcapping=None)),
    # HF issue 29623; flash kernels and jax.nn count the window without the query
    "window one too long": (logits("gemma2_2b"), window(lambda reach: reach + 1)),
    "window one too short": (logits("gemma3_1b"), window(lambda reach: reach - 1)),
    "exported with a window one too long": (
        logits("gemma3_1b"),
        exported(sliding_window=lambda config: config.window + 1),
    ),
    # HF PR 40700
    "window halved": (logits("gemma3_1b"), window(lambda reach: reach // 2 + 1)),
    # mistral.rs issue 486
    "Gemma 2 local layers inverted": (logits("gemma2_2b"), kinds(inverted)),
    "Gemma 3 local layers inverted": (logits("gemma3_1b"), kinds(inverted)),
    "Gemma 3 global layers one early": (logits("gemma3_1b"), kinds(shifted)),
    "exported with Gemma 2 local layers inverted": (local_layers(2), kinds(inverted)),
    "exported with Gemma 3 global layers one early": (local_layers(3), kinds(shifted)),
    # mlx-vlm PR 1709, ollama PR 13452, mlxcel issue 1340, ferrox issue 39, vLLM PR 33958
    "Gemma 3 scaling dropped": (logits("gemma3_27b", far_rows), rope(lambda p, h, b, s: rope_tables(p, h, b, 1.0))),
    "Gemma 3 scaling on local layers, too": (
        logits("gemma3_27b", far_rows),
        rope(lambda p, h, b, s: rope_tables(p, h, b, 8.0)),
    ),
    "Gemma 3 scaling on local layers only": (
        logits("gemma3_27b", far_rows),
        rope(lambda p, h, b, s: rope_tables(p, h, b, 8.0 / s)),
    ),
    "Gemma 3 scaling twice": (logits("gemma3_27b", far_rows), rope(lambda p, h, b, s: rope_tables(p, h, b, s * s))),
    "Gemma 3 scaling where the size has none": (
        logits("gemma3_1b", far_rows),
        rope(lambda p, h, b, s: rope_tables(p, h, b, 8.0 if b > 10_000 else s)),
    ),
    # the 27B sizes divide by d_model / heads
    "Gemma 2 27B query scale from head_dim": (logits("gemma2_27b"), scaled_by_head_width),
    "Gemma 3 27B query scale from head_dim": (logits("gemma3_27b"), scaled_by_head_width),
    "exported with a query scale from head_dim": (
        logits("gemma2_27b"),
        exported(query_pre_attn_scalar=lambda config: config.head_dim),
    ),
    # 256,000 pieces and 256,128 rows
    "text from rows that no piece has": (text, text_of_all_rows),
    "scores over rows that no piece has": (scores, score_over_all_rows),
    # transformers' sdpa_attention.py on prefill and decode
    "cache that forgets its place": (text, cache_that_forgets_its_place),
    "cache that sees padding": (text, cache_that_sees_padding),
    # lm-eval PRs 1465 and 2049, issues 3430, 3333 and 2382
    "scores without BOS": (scores, score_without_bos),
    "scores with BOS as text": (scores, score_with_bos_as_text),
    # lm-eval's HumanEval and MBPP fetch a metric when they are imported
    "tasks that fetch from the Hub": (hub, tasks_of_the_library),
}


@pytest.mark.parametrize("name", TRAPS)
def test_a_sprung_trap_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, spring = TRAPS[name]
    assert check() <= 1
    spring(monkeypatch)
    assert check() > 1


def test_rows_are_longer_than_two_windows() -> None:
    """Else nothing of windows and kinds of layers would be seen."""
    assert all(config.window is None or config.window * 2 < S for config in LIKE.values())
