"""Which ids of a checkpoint's vocabulary stand for what."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from mgpt_edge.runtime.errors import BundleError


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The special ids of one checkpoint; nothing outside this class knows an id as a number.

    Image code c has the id ``first_code + c``. Grid token n, which says "n units of 32 pixels",
    has the id ``first_grid + n``. Lumina-mGPT 1, 2.0 and mini differ in these values only.
    ``separator`` is None where a turn ends in words (`prompt.SEPARATOR`) that the tokenizer has no id of its own for.
    """

    size: int
    bos: int
    begin_image: int
    end_image: int
    end_row: int
    separator: int | None
    first_grid: int
    grids: int
    first_code: int
    codes: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "separator" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                msg = f"vocabulary: {field.name} must be an id, a whole number from 0, got {value!r}"
                raise BundleError(msg)
        highest = max(
            self.bos,
            self.begin_image,
            self.end_image,
            self.end_row,
            *self.turn_end,
            self.first_grid + self.grids - 1,
            self.first_code + self.codes - 1,
        )
        if highest >= self.size or self.codes < 1 or self.grids < 2:
            msg = (
                f"vocabulary: {self.codes} codes and {self.grids} grid tokens reach id {highest}, "
                f"expected at least one code, two grid tokens and ids below {self.size}"
            )
            raise BundleError(msg)

    @property
    def turn_end(self) -> tuple[int, ...]:
        """What stands after a turn: the separator, or nothing where words end it."""
        return () if self.separator is None else (self.separator,)

    @property
    def code_range(self) -> tuple[int, int]:
        """Half-open interval of the image codes' ids."""
        return self.first_code, self.first_code + self.codes

    def grid(self, units: int) -> int:
        """Id of the grid token for `units` of 32 pixels."""
        return self.first_grid + units

    def to_json(self) -> dict[str, int | None]:
        return asdict(self)
