"""Greedy decoding with a cache writes what the model without one writes, and what transformers writes."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.trainer.twins import LIKE, B, config_of, relative, rows, twins, writers
from trainer.model import Gemma, GemmaConfig, generate, greedy, init_weights
from trainer.model.generate import _Cache
from trainer.model.kernels import sdpa

TOKENS = 64
WORDS = 250  # pieces; the last rows of the embedding have none
every_size = pytest.mark.parametrize("config", LIKE.values(), ids=LIKE.keys())


pytestmark = pytest.mark.usefixtures("one_thread")


def prompts() -> list[list[int]]:
    """BOS alone, one that generation carries over the window of 10, one as long as it, and one of two windows."""
    tokens = torch.randint(4, WORDS, (23,), generator=torch.Generator().manual_seed(5)).tolist()
    return [[2], [2, *tokens[:6]], [2, *tokens[4:13]], [2, *tokens]]


def written(model: Gemma, asked: list[list[int]], most: int = TOKENS, words: int = WORDS) -> list[list[int]]:
    return [list(ids) for ids in zip(*greedy(model, asked, most, words), strict=True)]


@torch.no_grad()
def without_cache(model: Gemma, prompt: list[int]) -> list[int]:
    """The whole row computed anew for each token."""
    ids = list(prompt)
    for _ in range(TOKENS):
        tokens = torch.tensor([ids])
        logits = model(tokens, torch.ones_like(tokens), torch.arange(len(ids))[None])
        ids.append(int(logits[0, -1, :WORDS].argmax()))
    return ids[len(prompt) :]


@every_size
def test_ids_with_and_without_the_cache_and_of_transformers_are_equal(config: GemmaConfig) -> None:
    both = writers(config, WORDS)
    cached = written(both.ours, prompts())
    for prompt, ids in zip(prompts(), cached, strict=True):
        assert ids == without_cache(both.ours, prompt)
        theirs = both.theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=TOKENS)
        assert ids == theirs[0, len(prompt) :].tolist()
        assert len(set(ids)) > TOKENS / 4  # one word again and again would prove little
    assert len(set(map(tuple, cached))) == len(prompts())


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_hidden_states_with_the_cache_are_those_without(generation: int) -> None:
    """Not the ids alone: place for place, over rows that are read in runs of any length."""
    model = twins(config_of(generation), 0.3).ours
    tokens_BS, segments_BS, positions_BS = rows()
    with torch.inference_mode():
        cache = _Cache(40, torch.device("cpu"))
        runs = [13, 1, 1, 7, 1, 6]
        parts = [
            cache.hidden(model, *run)
            for run in zip(*(x.split(runs, 1) for x in (tokens_BS, segments_BS, positions_BS)), strict=True)
        ]
        whole = model.hidden(tokens_BS, segments_BS, positions_BS)
    assert relative(torch.cat(parts, 1), whole) <= 1e-5


def test_rows_of_a_batch_do_not_touch_each_other() -> None:
    model = writers(config_of(3), WORDS).ours
    alone = [written(model, [prompt])[0] for prompt in prompts()]
    assert written(model, prompts()) == alone
    assert written(model, prompts()[::-1]) == alone[::-1]


def test_after_the_prompt_every_pass_has_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def spying(*about):
        attend = sdpa(*about)

        def spy(q_BSNH, k_BTKH, *others):
            shapes.append((tuple(q_BSNH.shape), tuple(k_BTKH.shape)))
            return attend(q_BSNH, k_BTKH, *others)

        return spy

    monkeypatch.setattr(generate, "sdpa", spying)
    config = config_of(2)
    written(twins(config, 0.3).ours, prompts())
    rows_, longest, places = len(prompts()), max(map(len, prompts())), max(map(len, prompts())) + TOKENS - 1
    assert len(shapes) == TOKENS * config.num_layers
    keys = (rows_, places, config.num_kv_heads, config.head_dim)
    queries = [(rows_, n, config.num_heads, config.head_dim) for n in (longest, 1)]
    assert set(shapes[: config.num_layers]) == {(queries[0], keys)}
    assert set(shapes[config.num_layers :]) == {(queries[1], keys)}


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_a_compiler_sees_two_shapes() -> None:
    """Nothing that changes from token to token is a number or a shape, which would be compiled anew each time."""
    model = writers(config_of(2, num_layers=2), WORDS).ours
    plain = list(greedy(model, prompts(), 8, WORDS))
    compiled, seen = 0, []

    def backend(graph, _inputs):
        nonlocal compiled
        compiled += 1
        return graph.forward

    model.hidden = torch.compile(model.hidden, backend=backend, dynamic=False)
    for number, ids in enumerate(greedy(model, prompts(), 8, WORDS)):
        assert ids == plain[number]
        seen.append(compiled)
    assert 0 < seen[0] < seen[1]
    assert seen[1:] == seen[1:2] * 7


def test_rows_beyond_the_pieces_are_never_written() -> None:
    model = writers(config_of(1), WORDS).ours
    with torch.no_grad():
        model.embedding.weight[WORDS:] *= 9
    assert any(token >= WORDS for ids in written(model, prompts(), words=256) for token in ids)
    assert all(token < WORDS for ids in written(model, prompts()) for token in ids)


def test_who_asks_decides_when_there_is_enough() -> None:
    model = writers(config_of(3), WORDS).ours
    whole = list(greedy(model, prompts(), TOKENS, WORDS))
    assert list(itertools.islice(greedy(model, prompts(), TOKENS, WORDS), 5)) == whole[:5]
    assert list(greedy(model, prompts(), 0, WORDS)) == []


def test_the_model_trains_as_before_while_text_is_being_written() -> None:
    config = config_of(3)
    model = Gemma(config)
    init_weights(model, seed=1)
    tokens_BS, segments_BS, positions_BS = rows()

    def loss_and_gradient():
        model.zero_grad()
        loss = model(tokens_BS, segments_BS, positions_BS, tokens_BS.roll(-1, 1))
        loss.backward()
        return loss.item(), model.blocks[0].attention.k.weight.grad.clone()

    before = loss_and_gradient()
    text = greedy(model, prompts(), TOKENS, WORDS)
    next(text)
    during = loss_and_gradient()
    assert next(text) == list(greedy(model, prompts(), 2, WORDS))[1]
    assert before[0] == during[0]
    assert torch.equal(before[1], during[1])


def test_bf16_text_comes_from_logits_near_those_of_fp32() -> None:
    """Keys are kept as they were computed: with the cache, bfloat16 is no further from float32 than without."""
    model = twins(config_of(2), 0.1).ours
    with torch.inference_mode():
        exact = model.hidden(*rows())
        model.bfloat16()
        without = relative(model.hidden(*rows()), exact)
        cache = _Cache(29, torch.device("cpu"))
        parts = [cache.hidden(model, *(x[:, i : i + 1] for x in rows())) for i in range(29)]
    assert parts[0].shape[0] == B
    assert relative(torch.cat(parts, 1), exact) <= 1.5 * without


@pytest.mark.parametrize("asked", [[], [[2], []]])
def test_an_empty_prompt_is_refused(asked: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="empty prompt: begin each with the id of BOS"):
        next(greedy(Gemma(config_of(1)), asked, 1, WORDS))
