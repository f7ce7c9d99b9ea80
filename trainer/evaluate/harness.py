"""A Gemma in memory as a model of lm-evaluation-harness, and its scores on the task pack. The only importer of lm_eval.

Knows nothing of runs, checkpoints or files of results. Every process that holds a part of a sharded model makes the
same calls in the same order and gets the same scores.

Shape suffixes: B rows, S positions, V pieces of the tokenizer, C scored positions of all rows.
"""

from __future__ import annotations

import difflib
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from conf.exits import ConfigError
from data_pipeline.tokenizer import Tokenizer
from trainer.evaluate.tasks import files
from trainer.model import Gemma

TASKS = Path(files.__file__).parent
NAME = f"lm-eval {version('lm_eval')}"

# Float32 logits of one forward pass: with 262,144 words they, not batch_tokens, decide how many tokens fit.
_LOGIT_BYTES = 2 * 2**30
_MAX_NEW_TOKENS = 256  # where a generation task states no max_gen_toks; lm-eval's own default


class GemmaLM(TemplateLM):
    """Log-likelihoods and greedy text of a Gemma.

    A context is exactly one BOS and the pieces of its text, as in training: without BOS a Gemma is near chance. Context
    and continuation are encoded together and split where the context encoded alone ends (lm-eval's rule). Probabilities
    are over the tokenizer's pieces; embedding rows beyond them, which no text has, take no part, as in an export.

    Args:
        batch_tokens: positions of a forward pass, padding included; a single longer row is passed alone. Fewer where
            the logits would need more than 2 GiB. Scores do not depend on it, but for rounding.
        max_length: positions the model supports. Longer contexts lose tokens on the left, after BOS.
    """

    def __init__(self, model: Gemma, tokenizer: Tokenizer, batch_tokens: int, max_length: int) -> None:
        super().__init__()
        self.model = model
        self.pieces = tokenizer
        self.max_length = max_length
        self.batch_tokens = min(batch_tokens, _LOGIT_BYTES // (4 * model.config.vocab_size))

    @property
    def eot_token_id(self) -> int:
        return self.pieces.eos

    @property
    def prefix_token_id(self) -> int:
        return self.pieces.bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """The pieces of a text, never BOS: `_encode_pair` and the windows put it in its one place."""
        return self.pieces.encode(string)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        return [self.prefix_token_id, *context_ids], continuation_ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(sum of log p of the continuation in nats, whether greedy decoding would write it) of each request."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        pairs = [self._fit(context, continuation) for _, context, continuation in requests]
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]))
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        while order:
            count = max(1, self.batch_tokens // len(pairs[order[0]][0]))
            batch, order = order[:count], order[count:]
            for i, score in zip(batch, self._score([pairs[i] for i in batch]), strict=True):
                scores[i] = score
        return scores

    def _fit(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """(inputs, targets of the last inputs): the last token predicts nothing and is no input."""
        if len(continuation) > self.max_length:
            raise ConfigError(
                f"a continuation of {len(continuation)} tokens does not fit the {self.max_length} positions of the "
                "model: score this task with a model trained on a larger data.sequence_length"
            )
        inputs = (context + continuation)[:-1]
        excess = len(inputs) - self.max_length
        return (inputs[:1] + inputs[1 + excess :] if excess > 0 else inputs), continuation

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        counts = [len(targets) for _, targets in pairs]
        logits_BSV = self._logits([inputs for inputs, _ in pairs])
        scored_BS = torch.zeros(logits_BSV.shape[:2], dtype=torch.bool)
        for row, (inputs, targets) in enumerate(pairs):
            scored_BS[row, len(inputs) - len(targets) : len(inputs)] = True
        logits_CV = logits_BSV[scored_BS.to(logits_BSV.device)]
        targets_C = torch.tensor([t for _, targets in pairs for t in targets], device=logits_CV.device)
        log_p_C = logits_CV.gather(1, targets_C[:, None])[:, 0] - logits_CV.logsumexp(dim=1)
        greedy_C = logits_CV.argmax(dim=1) == targets_C
        sums = [part.double().sum().item() for part in log_p_C.cpu().split(counts)]
        greedy = [bool(part.all()) for part in greedy_C.cpu().split(counts)]
        return list(zip(sums, greedy, strict=True))

    def _logits(self, rows: list[list[int]]) -> Tensor:
        """[B, S, V] float32 of rows of ids, the shorter ones padded at the end with a segment nothing else sees."""
        shape = (len(rows), max(len(row) for row in rows))
        tokens_BS, segments_BS = torch.full(shape, self.pieces.pad), torch.zeros(shape, dtype=torch.int32)
        for line, row in enumerate(rows):
            tokens_BS[line, : len(row)] = torch.tensor(row)
            segments_BS[line, : len(row)] = 1
        positions_BS = torch.arange(shape[1], dtype=torch.int32).expand(shape)
        device = next(self.model.parameters()).device
        logits_BSV: Tensor = self.model(tokens_BS.to(device), segments_BS.to(device), positions_BS.to(device))
        return logits_BSV[..., : self.pieces.vocab_size]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Sum of log p of each whole text, in nats.

        Longer texts are cut into windows that share no scored token. Each window starts with BOS; from the second on as
        much of the text before as fits follows it, at least one token, as in lm-eval's windows.
        """
        sums = []
        for request in requests:
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, max_seq_len=self.max_length - 1, context_len=1
            )
            pairs = []
            for number, (context, targets) in enumerate(map(make_disjoint_window, windows)):
                pairs.append((None, [self.prefix_token_id, *context] if number else context, targets))
            sums.append(sum(log_p for log_p, _ in self._loglikelihood_tokens(pairs)))
        return sums

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The greedy continuation of each context up to EOS or a stop string, which is left out.

        A context that leaves no room for max_gen_toks tokens loses its left end, down to half of the positions. The
        whole row is computed anew for each token, so this is exact and slow. Sampling raises ConfigError.
        """
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, how: dict[str, Any]) -> str:
        if how.get("do_sample") and how.get("temperature") != 0:
            raise ConfigError(
                f"a task asks for sampling (do_sample with temperature={how.get('temperature')}), but only greedy "
                "decoding is available: leave the task out of evaluate.tasks"
            )
        until = how.get("until") or []
        stops = [until] if isinstance(until, str) else until
        asked = how.get("max_gen_toks", _MAX_NEW_TOKENS)
        room = max(self.max_length - asked, self.max_length // 2) - 1
        ids = [self.prefix_token_id, *self.tok_encode(context)[-room:]]
        written: list[int] = []
        for _ in range(min(asked, self.max_length + 1 - len(ids))):
            token = int(self._logits([ids + written])[0, -1].argmax())
            if token == self.pieces.eos:
                break
            written.append(token)
            text = self.pieces.decode(written)
            if ends := [text.index(stop) for stop in stops if stop and stop in text]:
                return text[: min(ends)]
        return self.pieces.decode(written)


def check_tasks(tasks: list[str]) -> None:
    """Raise ConfigError for a name that the task pack does not have."""
    known = sorted(files.FILES)
    for name in tasks:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"evaluate.tasks: there is no task {name!r}: {hint}Tasks: {', '.join(known)}")


def score_tasks(lm: GemmaLM, tasks: list[str], benchmarks: Path, limit: int | None) -> dict[str, dict[str, Any]]:
    """The headline metric of each task, its standard error, items, shots, version and chance level.

    Args:
        tasks: names of the task pack whose files are in the folder.
        benchmarks: folder of benchmark files.
        limit: score only the first so many items of each task.

    Raises DataError where a benchmark file is broken. Reads nothing from the network.
    """
    # For each of our tasks the harness advises flags of its own command line, which our users do not have.
    logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)
    manager = TaskManager(include_path=TASKS, include_defaults=False, metadata={"benchmarks": str(benchmarks)})
    results = lm_eval.evaluate(lm, manager.load(tasks), limit=limit, log_samples=False)
    scores = {}
    for task in tasks:
        config, values = results["configs"][task], results["results"][task]
        metric = config["metric_list"][0]["metric"]
        stderr = values[f"{metric}_stderr,none"]
        scores[task] = {
            "metric": metric,
            "value": float(values[f"{metric},none"]),
            "stderr": None if stderr == "N/A" else float(stderr),  # of a single item there is none
            "items": results["n-samples"][task]["effective"],
            "few_shot": results["n-shot"][task],
            "version": results["versions"][task],
            "chance": config["metadata"]["chance"],
        }
    return scores
