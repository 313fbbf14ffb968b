"""How well a bundle of the small model does what it is asked: the figures of its card, through the runtime.

mgpt bench quality [--model BUNDLE] [--judge FILE] [--count 200] [--speculate 16 --approximate 4] [--json]
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

import mgpt_edge
from mgpt_edge.finetune.conversation import Turn
from mgpt_edge.finetune.mini import scores
from mgpt_edge.finetune.mini.album import Album
from mgpt_edge.finetune.mini.draw import Sampling
from mgpt_edge.finetune.mini.judge import Judge
from mgpt_edge.finetune.mini.pictures import SHARD, Pictures, render_together
from mgpt_edge.finetune.mini.vq import each_psnr
from mgpt_edge.runtime.bundle.folder import default_bundle
from mgpt_edge.runtime.decoding.schedule import decode
from mgpt_edge.runtime.decoding.steps import End
from mgpt_edge.runtime.errors import IncompleteAnswer, InvalidRequest
from mgpt_edge.runtime.family.grammar import Form
from mgpt_edge.runtime.family.prompt import encode_turn
from mgpt_edge.runtime.family.tasks import template
from mgpt_edge.runtime.intake.job import Job
from mgpt_edge.runtime.intake.request import Request
from mgpt_edge.runtime.machine import cache_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mgpt_edge.runtime.engines.base import Engine
    from mgpt_edge.runtime.model import Model

LONGEST_ANSWER = 60  # tokens


@dataclass(frozen=True, slots=True)
class BundleArtist:
    """A loaded bundle as `finetune.fidelity.Artist`; it guesses ahead as a `Request` says."""

    model: Model
    speculate: int | str = "off"
    approximate: int = 1

    def paint(self, prompts: list[str], width: int, height: int, sampling: Sampling, seed: int) -> NDArray[np.uint8]:
        text = template("text-to-image")
        asked = [Turn(text.format(width=width, height=height, prompt=prompt)) for prompt in prompts]
        return self.respond(asked, width, height, sampling, seed)

    def respond(self, asked: list[Turn], width: int, height: int, sampling: Sampling, seed: int) -> NDArray[np.uint8]:
        layout = self.model.layout((width, height))
        form = Form(vocabulary=layout.vocabulary, stride=layout.stride, limit=len(layout), layout=layout, picture=True)
        jobs = [self._job(turn, form, sampling, seed + number) for number, turn in enumerate(asked)]
        return np.stack([self.model.engine.decode_pixels(layout.decode(tokens)) for tokens in self._decode(jobs)])

    def answer(self, asked: list[Turn]) -> list[str]:
        vocabulary, stride = self.model.manifest.vocabulary, self.model.manifest.pictures.stride
        form = Form(vocabulary=vocabulary, stride=stride, limit=LONGEST_ANSWER)
        return [self._words(self._job(turn, form, Sampling(guidance=1.0, top_k=1), 0)) for turn in asked]

    def _words(self, job: Job) -> str:
        """An answer in text; none where the model began a picture."""
        try:
            (tokens,) = self._decode([job])
        except IncompleteAnswer:
            return ""
        ends = job.form.vocabulary.turn_end
        return str(self.model.tokenizer.decode([token for token in tokens if token not in ends]))

    def _job(self, turn: Turn, form: Form, sampling: Sampling, seed: int) -> Job:
        vocabulary = form.vocabulary
        said = encode_turn(self.model.tokenizer, turn.text, turn.pictures)
        request = Request(
            prompt=turn.text,
            size=None,
            seed=seed,
            guidance=sampling.guidance,
            top_k=sampling.top_k,
            text_top_k=1,
            temperature=sampling.temperature,
            speculate=self.speculate,
            approximate=self.approximate,
        )
        return Job(request, [vocabulary.bos, *said, *vocabulary.turn_end], form)

    def _decode(self, jobs: Sequence[Job]) -> list[list[int]]:
        """The tokens of each job's answer."""
        capacities = max(job.capacities[0] for job in jobs), max(job.capacities[1] for job in jobs)
        rows = self.model.engine.open(capacities, min(len(jobs), self.model.engine.most_streams))
        found: dict[int, list[int]] = {}
        for step in decode(rows, jobs, self.model.window(jobs[0].request, rows.streams)):
            if isinstance(step, End):
                found[step.answer] = list(step.tokens)
        return [found[number] for number in range(len(jobs))]

    def album(self, size: tuple[int, int], count: int, folder: Path) -> Album:
        """The first held-back scenes of the small world, encoded by the bundle."""
        kinds = ("picture", *scores.CONDITIONS)
        pictures = {kind: Pictures(folder, "validation", *size, SHARD, kind) for kind in kinds}
        render_together(list(pictures.values()), processes=self.model.engine.threads)
        codes = {
            kind: np.stack([self.model.engine.encode_pixels(picture) for picture in shown.load()[:count]])
            for kind, shown in pictures.items()
        }
        return Album(pictures, {**codes, "picture": codes["picture"][None]}, self.model.manifest.vocabulary)


def _decibels(engine: Engine, album: Album, count: int) -> float:
    """PSNR of pictures that are encoded and decoded: the mean of their own, as the training's."""
    pictures = album.pictures["picture"].load()[:count]
    drawn = np.stack([engine.decode_pixels(engine.encode_pixels(picture)) for picture in pictures])
    return float(np.mean(each_psnr(drawn, pictures)))


def quality(
    model: Annotated[Path | None, typer.Option(help="Bundle; the small model unless given.")] = None,
    judge: Annotated[Path | None, typer.Option(help="Weights of the judge; those beside the bundle.")] = None,
    count: Annotated[int, typer.Option(min=1, max=SHARD, help="Requests behind each figure.")] = 200,
    speculate: Annotated[int | None, typer.Option(min=1, help="Codes guessed ahead; no picture changes.")] = None,
    approximate: Annotated[int, typer.Option(min=1, help="Keep guesses among so many best: pictures change.")] = 1,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print every figure of the card, with 95 % confidence intervals."""
    folder = model or default_bundle()
    weights = judge or folder.parent / "judge.safetensors"
    if not weights.is_file():
        msg = f"there is no {weights}; say where the judge's weights are: --judge FILE (make mini writes them)"
        raise InvalidRequest(msg)
    loaded, reader = mgpt_edge.load(folder), Judge.load(weights)
    artist, manifest = BundleArtist(loaded, speculate or "off", approximate), loaded.manifest
    usual = manifest.tasks["text-to-image"]
    sampling = Sampling(usual.guidance, usual.top_k, usual.temperature)
    side = manifest.pictures.target_size
    lines = list(scores.drawing(artist, reader, manifest.pictures.trained_sizes, count, sampling))
    if "chat" in manifest.tasks:
        pictures = (cache_folder() or Path(tempfile.gettempdir())) / "tabletop"
        album = artist.album((side, side), count, pictures)
        lines.append(("VQ there and back", f"{_decibels(loaded.engine, album, count):.1f} dB"))
        lines += scores.seeing(artist, reader, album, count, sampling)
    if as_json:
        print(json.dumps(dict(lines)))
        return
    print(f"{manifest.name} {manifest.precision}, guidance {sampling.guidance:g}")
    for name, figure in lines:
        print(f"{name:32}  {figure}")
