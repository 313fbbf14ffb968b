"""A stage that learns from its own pictures: those that a reader finds right become likelier, the others less likely.

Policy gradient, with several pictures of each request and their mean as the baseline (GRPO: Shao et al.,
"DeepSeekMath", 2024, section 4.1), one step a batch, so that no ratio needs clipping. In place of a distance from a
reference model, supervised batches of every task go with each step. Pictures are drawn as they will be: guidance is
part of the policy, and gradients reach both of its rows.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mgpt_edge.finetune.arithmetic import fast_type
from mgpt_edge.finetune.conversation import Turn, collate, encode_conversation, without_prompt
from mgpt_edge.finetune.mini.assignments import from_text, of_album
from mgpt_edge.finetune.mini.corpus import choose
from mgpt_edge.finetune.mini.draw import Sampling
from mgpt_edge.finetune.sft import Stage, computing
from mgpt_edge.runtime.family.layout import ImageLayout
from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mgpt_edge.export.model import Decoder
    from mgpt_edge.finetune.conversation import Batch, Sample
    from mgpt_edge.finetune.mini.album import Scenes
    from mgpt_edge.finetune.mini.assignments import Assignment
    from mgpt_edge.finetune.mini.judge import Judge
    from mgpt_edge.finetune.mini.painter import Painter
    from mgpt_edge.finetune.mini.plan import RewardPlan, Size
    from mgpt_edge.finetune.parallel import Processes
    from mgpt_edge.finetune.sft import Corpus, Recipe

ROWS = 64
"""Sequences that go through the model at a time."""
SMALL = 64
"""Codes of the pictures that a plan's number of prompts is for."""


class Rewarded(Stage):
    """A stage whose every step draws, looks and learns, beside what its corpus teaches.

    Args:
        painter: at work with the model that is trained.
        critic: reads what was drawn.
        albums: of the sizes whose tasks begin with a picture.
        plan: what is drawn, and how.

    The others are as of `Stage`; of several processes none is supported but one.
    """

    def __init__(
        self,
        painter: Painter,
        critic: Judge,
        albums: Mapping[Size, Scenes],
        plan: RewardPlan,
        corpus: Corpus,
        recipe: Recipe,
        folder: Path,
        name: str,
        processes: Processes,
    ) -> None:
        super().__init__(painter.model, corpus, recipe, folder, name, processes)
        self.painter, self.critic, self.albums, self.plan = painter, critic, albums, plan

    def gradients(self) -> dict[str, float]:
        """Of the rewards, and of the corpus' batch."""
        return self._rewarded() | super().gradients()

    def _rewarded(self) -> dict[str, float]:
        plan, rng = self.plan, np.random.default_rng([self.recipe.seed, 5, self.step])
        task, size = list(plan.tasks)[choose(rng, list(plan.tasks.values()))]
        guidance = list(plan.guidances)[choose(rng, list(plan.guidances.values()))]
        sampling = Sampling(guidance, self.painter.vocabulary.codes, plan.temperature)
        asked = self._asked(task, size, rng)
        turns = [assignment.turn for assignment in asked for _ in range(plan.pictures)]
        hand = replace(self.painter, model=copy.deepcopy(self.model).to(fast_type(self.processes.device)))
        seed = self.recipe.seed * 1_000_003 + self.step
        codes = hand.draw(turns, *size, sampling, seed, batch=len(turns))
        reward = self._rewards(asked, hand.decode(codes))
        advantage = advantages(reward)
        self.model.train()
        self._learn(turns, codes, size, advantage, sampling)
        return {"right": float((reward > 0).float().mean()), "reward": float(reward.mean())}

    def _asked(self, task: str, size: Size, rng: np.random.Generator) -> list[Assignment]:
        layout = ImageLayout(*size, self.painter.vocabulary)
        # Larger pictures take more of everything, and so fewer are drawn.
        count = max(1, round(self.plan.prompts * (SMALL / (layout.rows * layout.columns)) ** 0.75))
        if task == "text-to-image":
            return from_text(size, self.step * self.plan.prompts, count, rng)
        return of_album(task, self.albums[size], count, rng)

    def _rewards(self, asked: list[Assignment], pixels: np.ndarray) -> Tensor:
        """[requests, pictures]: how sure the critic is of a right picture; of another one nothing."""
        readings = iter(self.critic.read(pixels))
        rows = [[next(readings) for _ in range(self.plan.pictures)] for _ in asked]
        rewards = [[seen.sure * a.right(seen) for seen in row] for a, row in zip(asked, rows, strict=True)]
        return torch.tensor(rewards, dtype=torch.float32)

    def _learn(self, turns: list[Turn], codes: Tensor, size: Size, advantage: Tensor, sampling: Sampling) -> None:
        """Adds the gradients of the pictures whose advantage is worth a pass."""
        layout = ImageLayout(*size, self.painter.vocabulary)
        chosen = (advantage.flatten().abs() > 0.1).nonzero().flatten().tolist()
        drawn = {i: self._sample(turns[i], layout.encode(codes[i].numpy())) for i in chosen}
        order = sorted(chosen, key=lambda i: len(drawn[i]))
        # A guided logit moves with the guidance times the conditional one.
        weight = self.plan.weight * min(1.0, 2 / sampling.guidance) / (advantage.numel() * math.sqrt(SMALL))
        for start in range(0, len(order), ROWS):
            part = order[start : start + ROWS]
            samples = [drawn[i] for i in part]
            alone = collate([without_prompt(sample) for sample in samples]) if sampling.guidance != 1 else None
            with computing(self.processes.device):
                logits, labels = self._guided(collate(samples), alone, sampling.guidance)
            loss = policy_loss(logits, labels, advantage.flatten()[part], sampling.temperature)
            (weight * loss).backward()

    def _sample(self, turn: Turn, picture: list[int]) -> Sample:
        turns = [turn, Turn(IMAGE_MARK, (picture,))]
        return encode_conversation(turns, self.painter.tokenizer, self.painter.vocabulary)

    def _guided(self, batch: Batch, alone: Batch | None, guidance: float) -> tuple[Tensor, Tensor]:
        """Guided logits [pictures, codes, all codes] and the codes that were drawn [pictures, codes]."""
        logits, labels = code_logits(self.model, batch, self.painter.vocabulary.code_range, self.processes.device)
        if alone is not None:
            other, _ = code_logits(self.model, alone, self.painter.vocabulary.code_range, self.processes.device)
            logits = other + guidance * (logits - other)
        return logits, labels


def advantages(reward: Tensor) -> Tensor:
    """How much better than the others of its request a picture is, [requests, pictures], of deviation one in all."""
    better = reward - reward.mean(1, keepdim=True)
    return better / (better.square().mean().sqrt() + 1e-2)


def code_logits(
    model: Decoder, batch: Batch, code_range: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Float32 logits [b, n, codes] of the n codes that each sequence of a batch learns, and these codes [b, n]."""
    low, high = code_range
    labels = batch.labels.to(device)
    here = (labels >= low) & (labels < high)
    hidden = model.hidden(batch.tokens.to(device))[here]
    logits = F.linear(hidden, model.lm_head.weight[low:high]).float()
    return logits.unflatten(0, (len(labels), -1)), (labels[here] - low).view(len(labels), -1)


def policy_loss(logits: Tensor, drawn: Tensor, advantage: Tensor, temperature: float) -> Tensor:
    """Minus the pictures' log-likelihoods times their advantages, over the root of their codes.

    The root, since a picture's gradient is mostly noise and grows so with its codes.

    Args:
        logits: float32 [pictures, n, codes], guided.
        drawn: int64 [pictures, n].
        advantage: float32 [pictures].
        temperature: that they were drawn at.
    """
    likelihood = (logits / temperature).log_softmax(-1).gather(-1, drawn.unsqueeze(-1)).sum((1, 2))
    return -(advantage.to(likelihood.device) * likelihood).sum() / math.sqrt(drawn.shape[1])
