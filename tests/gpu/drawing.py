"""Checks of the sampler and of whole pictures against the NumPy specification, for any library of the kernels' face."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

# By its place in the source tree: a GPU machine need not have the package installed.
from mgpt_edge.runtime.errors import NumericalError
from mgpt_edge.runtime.sampling.specification import sample
from tests.gpu.library import CURSOR, NOT_A_NUMBER, NOTHING_LEFT, PICTURE, PICTURES, REQUEST, RESULT, TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.gpu.library import Buffer, Library

    Case = tuple[np.ndarray, np.ndarray | None, dict[str, Any]]
    Repeat = Callable[[Callable[[], None], int], None]

INF = np.inf
SPECIAL = np.array([0.0, -0.0, INF, -INF, np.nan, 1.0, -1.0, 3e38, -3e38, 1e-45, -1e-45, 1.0000001], np.float32)
HARMLESS = SPECIAL[[0, 1, 3, 5, 6, 7, 8]]
LARGE = ((8192, 2000), (8192, 1), (65536, 50), (65536, 10**9), (65536, 65535), (16384, 16383), (12289, 4096))


def random_case(rng: np.random.Generator, largest: int) -> Case:
    """A small case: every third with ties, every third with special values."""
    size = int(rng.integers(1, largest))
    first_id = int(rng.integers(0, 70000))
    kind = rng.integers(0, 6)
    if kind < 2:
        rows = (rng.normal(size=(2, size)) * 4).astype(np.float32)
    elif kind < 4:
        rows = rng.integers(-2, 3, (2, size)).astype(np.float32) * np.float32(rng.choice([-0.0, 0.5, 1.0]))
    else:
        rows = rng.normal(size=(2, size)).astype(np.float32)
        special = rng.random((2, size)) < rng.choice([0.05, 0.5])
        rows[special] = rng.choice(SPECIAL if kind == 4 else HARMLESS, int(special.sum()))
    low = int(rng.integers(0, size))
    high = int(rng.integers(low + 1, size + 1))
    paired = rng.random() < 0.7
    settings = {
        "first_id": first_id,
        "low": first_id + low,
        "high": first_id + high,
        "guidance": float(rng.choice([0.0, 1.0, -0.0, 3.0, 4.0, 7.5, -1.5, 1e30])) if paired else 1.0,
        "top_k": int(rng.choice([1, 2, 5, 20, 2000])),
        "temperature": float(rng.choice([0.0, 1.0, 0.7, 0.1, 5.0, 1e-30, 1e-46, 1e30])),
        "seed": int(rng.integers(0, 2**64, dtype=np.uint64)),
        "position": int(rng.integers(0, 2**32)),
    }
    return rows[0], rows[1] if paired else None, settings


def large_cases(rng: np.random.Generator) -> list[Case]:
    """Intervals of a whole vocabulary: plain, with many ties, and all equal."""
    cases: list[Case] = []
    for size, top_k in LARGE:
        plain = (rng.normal(size=(2, size)) * 3).astype(np.float32)
        for rows in (plain, np.round(plain), np.full_like(plain, -1.5)):
            settings = {"first_id": 4, "low": 5, "high": 4 + size, "guidance": 4.0, "top_k": top_k}
            settings |= {"temperature": 1.0, "seed": int(rng.integers(0, 2**63)), "position": 2350}
            cases.append((rows[0], rows[1], settings))
    return cases


def requests_of(library: Library, cases: list[Case]) -> tuple[Buffer, Buffer]:
    """Requests, and the logits they point at."""
    rows = [row for cond, uncond, _ in cases for row in (cond, cond if uncond is None else uncond)]
    logits = library.put(np.concatenate(rows))
    requests = np.zeros(len(cases), REQUEST)
    start = logits.address
    for request, (cond, uncond, case) in zip(requests, cases, strict=True):
        skipped = 4 * (case["low"] - case["first_id"])
        request["cond"] = start + skipped
        request["uncond"] = 0 if uncond is None else start + cond.nbytes + skipped
        request["count"] = case["high"] - case["low"]
        for name in ("low", "top_k", "guidance", "temperature", "seed", "position"):
            request[name] = case[name]
        start += 2 * cond.nbytes
    return library.put(requests), logits


def expected(case: Case) -> tuple[int, int]:
    """Status and token of the specification."""
    cond, uncond, settings = case
    try:
        return TOKEN, sample(cond, uncond, **settings)
    except NumericalError as error:
        return (NOT_A_NUMBER if "NaN" in str(error) else NOTHING_LEFT), 0


def check_sampler(library: Library, cases: list[Case]) -> None:
    """Every case in one launch: the same tokens and errors as the specification."""
    requests, _logits = requests_of(library, cases)
    results = library.put(np.full(len(cases), 0xFFFFFFFF, np.dtype((np.uint32, 2))).view(RESULT))
    library.run("sample", requests, len(cases), results)
    got = [(int(status), int(token)) for status, token in results.read().reshape(-1).tolist()]
    for case, want, have in zip(cases, map(expected, cases), got, strict=True):
        assert have == want, (have, want, case)


class Bigrams:
    """Pictures of a model whose logits follow from one token: drawn by the kernels, and again by the specification.

    Ids 0 to 11 are forced tokens, codes begin at 12. A table for each row holds the logits that follow a token.
    """

    low = 12

    def __init__(self, library: Library, rng: np.random.Generator, *, pictures: int, width: int, guided: bool) -> None:
        self.library, self.width, self.guided = library, width, guided
        codes = int(rng.integers(2, 20)) * 4
        self.high = self.low + codes
        self.first_id = int(rng.choice([0, self.low]))
        self.tables = (rng.normal(size=(2, self.high, self.high - self.first_id)) * 2).astype(np.float32)
        self.tables[:, :, : self.low - self.first_id] = np.nan  # nobody may look there
        self.first = 3  # tokens that stand at the beginning
        self.settings = [self._settings(rng) for _ in range(pictures)]
        self.forced = [self._layout(rng) for _ in range(pictures)]
        starts = [np.where(np.arange(len(forced)) < self.first, forced, 0) for forced in self.forced]
        self.forced_buffers = [library.put(forced) for forced in self.forced]
        self.tokens = [library.put(tokens.astype(np.int32)) for tokens in starts]
        self._allocate(pictures)

    def _settings(self, rng: np.random.Generator) -> dict[str, Any]:
        return {
            "offset": int(rng.integers(0, 60)),
            "top_k": int(rng.choice([1, 3, 20])),
            "guidance": float(rng.choice([0.0, 3.0, 4.0])) if self.guided else 1.0,
            "temperature": float(rng.choice([0.0, 0.7, 1.0])),
            "seed": int(rng.integers(0, 2**64, dtype=np.uint64)),
        }

    def _layout(self, rng: np.random.Generator) -> np.ndarray:
        """Three tokens, rows that end in a forced one, some codes that are kept, and an end."""
        columns, rows = rng.integers(1, 6, 2)
        body = np.full((rows, columns + 1), -1)
        body[rng.random(body.shape) < 0.1] = self.low + 1
        body[:, -1] = 3
        return np.concatenate([[0, 1, 2], body.reshape(-1), [4]]).astype(np.int32)

    def _allocate(self, pictures: int) -> None:
        put, rows = self.library.put, pictures * (1 + self.guided)
        table = np.zeros(pictures, PICTURE)
        for entry, settings, forced, tokens in zip(table, self.settings, self.forced_buffers, self.tokens, strict=True):
            entry["forced"], entry["tokens"], entry["size"] = forced.address, tokens.address, forced.shape[0]
            entry["low"], entry["high"] = self.low, self.high
            for name, value in settings.items():
                entry[name] = value
        self.pictures = put(table)
        self.cursors = put(np.array([(self.first, 1, TOKEN)] * pictures, CURSOR))
        self.feed = {name: put(np.full((rows, self.width), -1, np.int32)) for name in ("tokens", "positions")}
        self.feed |= {name: put(np.full(rows, -1, np.int32)) for name in ("lengths", "totals")}
        self.logits = put(np.full((rows, self.width, self.high - self.first_id), np.nan, np.float32))
        self.all = np.zeros(1, PICTURES)
        for name, buffer in {"pictures": self.pictures, "cursors": self.cursors, "logits": self.logits}.items():
            self.all[name] = buffer.address
        for name, buffer in self.feed.items():
            self.all[name] = buffer.address
        self.all["first_id"], self.all["columns"] = self.first_id, self.high - self.first_id
        self.all["width"], self.all["guided"] = self.width, int(self.guided)

    def begin(self) -> None:
        """The first feed of every picture."""
        for picture in range(len(self.settings)):
            self.library.run("roll_back", self.all, picture, self.first)

    def step(self) -> None:
        self.library.run("step", self.all, len(self.settings))

    def expected(self, picture: int) -> list[int]:
        """The whole picture, drawn by the specification."""
        settings = dict(self.settings[picture])
        offset = settings.pop("offset")
        tokens: list[int] = []
        for index, forced in enumerate(self.forced[picture].tolist()):
            if forced >= 0:
                tokens.append(forced)
                continue
            cond, uncond = self.tables[:, tokens[-1]]
            interval = {"first_id": self.first_id, "low": self.low, "high": self.high, "position": offset + index}
            tokens.append(sample(cond, uncond if self.guided else None, **interval, **settings))
        return tokens


def check_pictures(library: Library, rng: np.random.Generator, *, pictures: int, width: int, guided: bool) -> None:
    """Pictures of several sizes share their passes; what each pass would write into a cache is checked too."""
    model = Bigrams(library, rng, pictures=pictures, width=width, guided=guided)
    model.begin()
    prompts = [[-1] * settings["offset"] for settings in model.settings]
    # What is cached before the first pass: the prompt, and the picture's first tokens but one.
    caches = [prompts[row] + [0, 1] if side == 0 else [0, 1] for row in range(pictures) for side in range(1 + guided)]
    longest = max(map(len, model.forced))
    for number in range(2 * longest):
        run_pass(model, caches)
        if number in {longest // 3, longest // 2}:
            check_error(model, caches)
            back = 0 if number == longest // 3 else 3
            for picture, cursor in enumerate(model.cursors.read()):
                library.run("roll_back", model.all, picture, max(int(cursor["next"]) - back, model.first))
            run_pass(model, caches)
        model.step()
    for picture in range(pictures):
        want = model.expected(picture)
        assert model.tokens[picture].read().tolist() == want
        assert model.cursors.read()[picture]["next"] == len(want)
        for side in range(1 + guided):
            cache = caches[picture * (1 + guided) + side]
            assert cache == [*([] if side else prompts[picture]), *want][: len(cache)]


def check_captured(
    library: Library, rng: np.random.Generator, repeat: Callable[[Callable[[], None], int], None]
) -> None:
    """A picture without the host between its tokens: embeddings as logits are the engine's pass, a step follows.

    Args:
        library: of the kernels.
        rng: for the picture.
        repeat: does what it is given so many times: from a CUDA graph.
    """
    model = Bigrams(library, rng, pictures=1, width=2, guided=True)
    model.begin()
    size = 4 * (model.high - model.first_id)
    tables = [library.put(table) for table in model.tables]

    def one_pass() -> None:
        for side, table in enumerate(tables):
            row = side * model.width
            tokens, logits = model.feed["tokens"].part(4 * row), model.logits.part(size * row)
            library.run("embed", table, tokens, model.width, size, logits)
        model.step()

    repeat(one_pass, len(model.forced[0]))
    assert model.tokens[0].read().tolist() == model.expected(0)


def run_pass(model: Bigrams, caches: list[list[int]]) -> None:
    """An engine's pass: reads the feed, appends to the caches, leaves logits."""
    feed = {name: buffer.read() for name, buffer in model.feed.items()}
    logits = np.full(model.logits.shape, np.nan, np.float32)
    for row, cache in enumerate(caches):
        length, total = int(feed["lengths"][row]), int(feed["totals"][row])
        assert 1 <= total - length <= model.width
        assert length <= len(cache)
        tokens = feed["tokens"][row]
        assert (feed["positions"][row] == length + np.arange(model.width)).all()
        assert (tokens[total - length :] == tokens[total - length - 1]).all()
        cache[length:] = tokens[: total - length].tolist()
        logits[row, : total - length] = model.tables[row % 2 if model.guided else 0, tokens[: total - length]]
    model.logits.write(logits)


def check_error(model: Bigrams, caches: list[list[int]]) -> None:
    """A pass of NaN stops pictures where they stand, and says so; only going back resumes them."""
    before, tokens = model.cursors.read(), [buffer.read() for buffer in model.tokens]
    model.logits.write(np.full(model.logits.shape, np.nan, np.float32))
    model.step()
    run_pass(model, caches)
    model.step()
    after = model.cursors.read()
    for picture, forced in enumerate(model.forced):
        index = int(before[picture]["next"])
        if index < len(forced) and forced[index] < 0:
            assert after[picture].tolist() == (*before[picture].tolist()[:2], NOT_A_NUMBER)
            assert (model.tokens[picture].read() == tokens[picture]).all()
