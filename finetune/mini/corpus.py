"""What the small model is trained on: tasks over albums, mixed by weight into batches of like lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.finetune.conversation import Batch, Sample, collate, encode_conversation, without_prompt
from mgpt_edge.finetune.mini.tasks import GUIDED, TASKS
from mgpt_edge.finetune.mini.world import captions, sample_scene
from mgpt_edge.finetune.mini.world.caption import description
from mgpt_edge.finetune.mini.world.dialogue import edit_of, questions
from mgpt_edge.runtime.family.tasks import template
from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenizers import Tokenizer

    from mgpt_edge.finetune.mini.album import Album
    from mgpt_edge.runtime.family.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Part:
    """A task over an album, and how often it is drawn within its group."""

    task: str
    album: Album
    weight: float


@dataclass(frozen=True, slots=True)
class Group:
    """Parts whose sequences are about equally long: a batch is of one group, so that little of it is padding."""

    parts: Sequence[Part]
    batch: int
    weight: float


class Corpus:
    """Batches without end; each is a function of the seed and its number."""

    def __init__(
        self,
        groups: Sequence[Group],
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        prompt_drop: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.groups, self.tokenizer, self.vocabulary = groups, tokenizer, vocabulary
        self.prompt_drop, self.seed = prompt_drop, seed

    def batch(self, number: int, rank: int = 0, ranks: int = 1) -> Batch:
        """Batch `number`, or the share of it that one of several processes takes."""
        rng = np.random.default_rng([self.seed, number])
        group = self.groups[choose(rng, [group.weight for group in self.groups])]
        weights = [part.weight for part in group.parts]
        seeds = rng.integers(2**63, size=group.batch)
        parts = [group.parts[choose(rng, weights)] for _ in range(group.batch)]
        return collate(
            [self._sample(parts[i], np.random.default_rng(seeds[i])) for i in range(rank, group.batch, ranks)]
        )

    def _sample(self, part: Part, rng: np.random.Generator) -> Sample:
        turns = TASKS[part.task](part.album, rng)
        sample = encode_conversation(turns, self.tokenizer, self.vocabulary)
        return without_prompt(sample) if part.task in GUIDED and rng.random() < self.prompt_drop else sample


def choose(rng: np.random.Generator, weights: Sequence[float]) -> int:
    """The place of one of the weights, each as likely as it is large."""
    return int(rng.choice(len(weights), p=np.array(weights) / sum(weights)))


def world_text(count: int, sizes: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Everything that is said over `count` training scenes: what the tokenizer is trained on."""
    for seed in range(count):
        rng, scene = np.random.default_rng([seed, 7]), sample_scene(seed)
        width, height = sizes[rng.integers(len(sizes))]
        for caption in captions(scene, rng, 2):
            yield template("text-to-image").format(width=width, height=height, prompt=caption)
        yield _around_the_mark(template("from-edges").format(prompt=captions(scene, rng)[0]))
        yield _around_the_mark(template("edit").format(instruction=edit_of(scene, seed).instruction))
        yield _around_the_mark(template(("depth", "normals", "segmentation", "describe")[seed % 4]))
        yield description(scene)
        for question in questions(scene, rng, 2):
            yield question.text
            yield question.answer


def _around_the_mark(text: str) -> str:
    """A picture's mark is no text."""
    return text.replace(IMAGE_MARK, "")
