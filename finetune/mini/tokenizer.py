"""The small checkpoint's tokenizer: the family's names for what is no text, then byte-level BPE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mgpt_edge.export.tokenizer import text_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

BEGIN_IMAGE, END_IMAGE = "<racm3:break>", "<eoss>"
SEPARATOR, END_ROW = "<reserved08706>", "<reserved08799>"
FIRST_GRID, GRIDS = 8800, 65
BASE = ("<s>", "<pad>", "</s>", "<unk>")


def code_name(code: int) -> str:
    """The family's name of an image code: its decimal digits, written with letters."""
    return f"IMGIMG{''.join('ABCDEFGHIJ'[int(digit)] for digit in str(code))}Z"


def special_names(codes: int) -> list[str]:
    """Every token that is no text, in the order of the ids."""
    grid = [f"<reserved{FIRST_GRID + n:05d}>" for n in range(GRIDS)]
    return [*BASE, *map(code_name, range(codes)), END_IMAGE, BEGIN_IMAGE, SEPARATOR, END_ROW, *grid]


def train_tokenizer(texts: Iterable[str], codes: int, merges: int = 400) -> Tokenizer:
    """Byte-level BPE over `texts`; any text can be encoded, the world's own in few tokens."""
    specials = special_names(codes)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(specials) + 256 + merges,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def for_text(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer as users' text needs it: names of special tokens in it stay text."""
    return Tokenizer.from_str(text_tokenizer(tokenizer.to_str()))
