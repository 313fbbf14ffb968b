"""Records as tokens: pictures through a checkpoint's VQ encoder, conversations through its tokenizer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer

from mgpt_edge.export.tokenizer import text_tokenizer
from mgpt_edge.export.vqfiles import HELP
from mgpt_edge.export.vqgan import VQGAN
from mgpt_edge.finetune.conversation import Sample, Turn, encode_conversation
from mgpt_edge.finetune.records import BadRecord, read_records
from mgpt_edge.runtime.errors import CheckpointError, InvalidRequest
from mgpt_edge.runtime.family.layout import GRID_PIXELS, ImageLayout, buckets
from mgpt_edge.runtime.family.tasks import template
from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK
from mgpt_edge.runtime.intake.pictures import fit, open_picture

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.finetune.records import Record

LONGEST = 4096  # tokens above which a conversation is cut
# A prompt that says a size, as template("text-to-image") does, up to its {prompt}.
SIZED = re.compile(
    re.escape(template("text-to-image").removesuffix("{prompt}"))
    .replace(r"\{width\}", r"\d+")
    .replace(r"\{height\}", r"\d+")
)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A record's sequence.

    Attributes:
        sample: tokens and what is learnt of them.
        guided: text to image: a question without pictures, and one picture as the whole answer. Guidance can be used
            for it, so its prompt may be dropped in training.
        cut: whether the end was cut off.
    """

    sample: Sample
    guided: bool
    cut: bool


class Encoder:
    """Turns records into tokens with a checkpoint's own tokenizer and VQ model.

    Args:
        checkpoint: of the family.
        sizes: (width, height) that pictures are fitted to.
        longest: tokens above which a sequence is cut, as the family cuts.
        device: where pictures are encoded.
    """

    def __init__(
        self, checkpoint: Checkpoint, sizes: Sequence[tuple[int, int]], longest: int, device: torch.device
    ) -> None:
        self.checkpoint, self.sizes, self.longest, self.device = checkpoint, list(sizes), longest, device
        self.tokenizer = Tokenizer.from_str(text_tokenizer(checkpoint.tokenizer_json))

    @cached_property
    def vq(self) -> VQGAN:
        """The VQ model, read when the first picture comes.

        Raises:
            CheckpointError: the checkpoint came without one.
        """
        if self.checkpoint.vq_config is None:
            msg = f"{self.checkpoint.source}: the records have pictures, and there are no VQ weights; {HELP}"
            raise CheckpointError(msg)
        model = VQGAN(self.checkpoint.vq_config)
        tensors = {name: self.checkpoint.vq_tensor(name).float() for name in self.checkpoint.vq_names()}
        model.load_state_dict(tensors, strict=False)  # the half that draws may be missing
        return model.to(self.device).eval()

    def encode(self, record: Record) -> Tokens:
        """The record's sequence.

        Raises:
            InvalidRequest: a picture cannot be read, a text is too long, or nothing that is learnt is left.
        """
        turns = [Turn(message.text, tuple(map(self._picture, message.pictures))) for message in record.messages]
        guided = len(turns) == 2 and not turns[0].pictures and turns[1].text.strip() == IMAGE_MARK
        if guided:
            drawn = turns[1].pictures
            turns = [Turn(self._sized(turns[0].text, drawn[0])), Turn(IMAGE_MARK, drawn)]
        whole = encode_conversation(turns, self.tokenizer, self.checkpoint.vocabulary)
        if len(whole) <= self.longest:
            return Tokens(whole, guided, cut=False)
        if not any(whole.learnt[: self.longest]):
            msg = f"the question alone fills the {self.longest} tokens of --max-length; the whole has {len(whole)}"
            raise InvalidRequest(msg)
        return Tokens(Sample(whole.tokens[: self.longest], whole.learnt[: self.longest]), guided=False, cut=True)

    @torch.no_grad()
    def _picture(self, path: Path) -> list[int]:
        pixels = fit(open_picture(path), self.sizes)
        layout = ImageLayout(pixels.shape[1], pixels.shape[0], self.checkpoint.vocabulary, self.vq.config.stride)
        codes = self.vq.encode_pixels(torch.tensor(pixels, device=self.device)[None])
        return layout.encode(codes[0].cpu().numpy())

    def _sized(self, question: str, picture: list[int]) -> str:
        """The question with the size that the picture has been fitted to: another would teach to ignore it."""
        height, width = ((token - self.checkpoint.vocabulary.first_grid) * GRID_PIXELS for token in picture[1:3])
        opening = template("text-to-image").format(width=width, height=height, prompt="")
        return opening + question[len(found[0]) :] if (found := SIZED.match(question)) else question


def read_conversations(checkpoint: Checkpoint, data: Path, count: int, target_size: int | None = None) -> list[Sample]:
    """`count` records as tokens, drawn from all of them, or all that can be used where there are fewer.

    Raises:
        InvalidRequest: none can be used, or nothing says which size pictures have.
    """
    target = target_size or checkpoint.defaults.target_size
    if target is None:
        msg = "nothing says which picture size this checkpoint was trained for; give --target-size, such as 768"
        raise InvalidRequest(msg)
    sizes = checkpoint.defaults.sizes if target_size is None else ()
    encoder = Encoder(checkpoint, sizes or buckets(target), LONGEST, torch.device("cpu"))
    entries = list(read_records(data))
    samples, refused = [], ""
    for index in np.random.default_rng(0).permutation(len(entries)):
        entry = entries[index]
        if isinstance(entry, BadRecord):
            refused = refused or str(entry)
            continue
        try:
            samples.append(encoder.encode(entry).sample)
        except InvalidRequest as error:
            refused = refused or str(error)
        if len(samples) == count:
            break
    if not samples:
        msg = f"{data}: none of {len(entries)} records can be used" + (f"; such as {refused}" if refused else "")
        raise InvalidRequest(msg)
    return samples
