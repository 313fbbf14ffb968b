"""`mgpt ask` and `mgpt chat`: questions about pictures, and conversations with pictures on both sides."""

from __future__ import annotations

import contextlib
import json
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgpt_edge.cli.drawing import check_folder
from mgpt_edge.cli.options import AsJson, Bundle, MaxTokens, Seed, Temperature, TextTopK, Threads
from mgpt_edge.runtime.errors import InvalidRequest, MgptError
from mgpt_edge.runtime.intake.request import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

    from mgpt_edge.runtime.chat import Chat
    from mgpt_edge.runtime.errors import IncompleteAnswer
    from mgpt_edge.runtime.model import Model
    from mgpt_edge.runtime.results.events import Event

HELP = """/image PATH   adds a picture to your next message; /image alone drops those added
/draw WORDS   asks for a picture, in the words the model was trained on
/seed N       changes what chance decides
/quit         ends"""
FOLDER = "Folder for the pictures in answers."


def ask(
    image: Annotated[Path, typer.Argument(help="Picture to look at.")],
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    seed: Seed = None,
    temperature: Temperature = None,
    text_top_k: TextTopK = None,
    max_tokens: MaxTokens = None,
    output: Annotated[Path, typer.Option("-o", "--output", help=FOLDER)] = Path(),
    model: Bundle = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question about a picture; pictures in the answer become answer-1.png, …"""
    from mgpt_edge.runtime.errors import IncompleteAnswer
    from mgpt_edge.runtime.model import load
    from mgpt_edge.runtime.results.events import Answer
    from mgpt_edge.runtime.results.metadata import save

    check_folder(output)
    settings = {"seed": seed, "temperature": temperature, "text_top_k": text_top_k, "max_tokens": max_tokens}
    events = load(model, threads=threads).stream(question, images=image, task="chat", **settings)
    names = _free_names(output, "answer")
    try:
        if not as_json:
            _print(events, names)
            return
        answer = Answer.of(events)
    except IncompleteAnswer as error:
        _save_partial(error, names)
        raise
    files = list(islice(names, len(answer.images)))
    for path, picture in zip(files, answer.images, strict=True):
        save(picture, path)
    complete = answer.end is not None and answer.end.complete
    facts = {"answer": answer.text, "complete": complete, "pictures": list(map(str, files))}
    print(json.dumps(facts, ensure_ascii=False))


def chat(
    seed: Seed = None,
    temperature: Temperature = None,
    text_top_k: TextTopK = None,
    guidance: Annotated[float | None, typer.Option(help="Of the pictures in answers; 1 is as trained.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT of the pictures in answers.")] = None,
    max_tokens: MaxTokens = None,
    context: Annotated[int | None, typer.Option(help="Tokens that the conversation can hold.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help=FOLDER)] = Path(),
    model: Bundle = None,
    threads: Threads = None,
) -> None:
    """Talk, with pictures on both sides; one message a line."""
    from mgpt_edge.runtime.model import load

    check_folder(output)
    if sys.stdin is None:
        msg = "messages are read from standard input, which is closed"
        raise InvalidRequest(msg)
    settings: dict[str, Any] = {
        "seed": seed,
        "temperature": temperature,
        "text_top_k": text_top_k,
        "guidance": guidance,
        "size": None if size is None else parse_size(size),
        "max_tokens": max_tokens,
    }
    loaded = load(model, threads=threads)
    conversation = loaded.chat(context=context, **settings)
    if sys.stdin.isatty():
        print(HELP)
        with contextlib.suppress(ImportError):  # lines that can be edited
            import readline  # noqa: F401
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # a stray byte is no reason to end a conversation
    pictures = _free_names(output, "chat")
    images: list[Image.Image] = []
    with contextlib.suppress(EOFError):
        while True:
            line = input("> " if sys.stdin.isatty() else "").strip()
            command, _, argument = line.partition(" ")
            if command == "/quit":
                return
            if command == "/image":
                images = [*images, *_attach(argument.strip())] if argument else []
                print(f"[pictures that go with your next message: {len(images)}]", file=sys.stderr)
            elif command == "/seed" and argument.strip().isdecimal():
                seed = int(argument)
            elif command == "/draw" and argument:
                _answer(conversation, _request(loaded, settings["size"], argument), [], seed, pictures)
            elif command.startswith("/"):
                print(HELP)
            elif line and _answer(conversation, line, images, seed, pictures):
                images = []


def _request(model: Model, size: tuple[int, int] | None, words: str) -> str:
    """A wish for a picture as the family was trained on it."""
    from mgpt_edge.runtime.family.tasks import template

    width, height = size or (model.manifest.pictures.target_size,) * 2
    return template("text-to-image").format(width=width, height=height, prompt=words.strip())


def _attach(path: str) -> list[Image.Image]:
    """The picture for the next message, opened now, so that a wrong path is known at once."""
    from mgpt_edge.runtime.intake.pictures import open_picture

    try:
        return [open_picture(path)]
    except MgptError as error:
        print(f"mgpt: {error}", file=sys.stderr)
        return []


def _answer(conversation: Chat, text: str, images: list[Image.Image], seed: int | None, names: Iterator[Path]) -> bool:
    """Prints one answer and saves its pictures; an error or Ctrl-C takes the turn back, and False is returned."""
    from mgpt_edge.runtime.errors import IncompleteAnswer

    events: Iterator[Event] | None = None
    try:
        events = conversation.stream(text, images, seed=seed)
        _print(events, names)
    except KeyboardInterrupt:
        print("\n[stopped; the message is taken back]", file=sys.stderr)
    except MgptError as error:
        print(f"mgpt: {error}", file=sys.stderr)
        if isinstance(error, IncompleteAnswer):
            _save_partial(error, names)
    else:
        print(f"[{conversation.tokens_left} tokens left]", file=sys.stderr)
        return True
    finally:
        if events is not None:
            events.close()  # type: ignore[attr-defined]  it is a generator
    return False


def _print(events: Iterator[Event], names: Iterator[Path]) -> None:
    """Text as it comes, and the names of files where pictures stand."""
    from mgpt_edge.runtime.decoding.steps import End
    from mgpt_edge.runtime.results.events import Picture, Text
    from mgpt_edge.runtime.results.metadata import save

    complete = True
    try:
        for event in events:
            if isinstance(event, Text):
                print(event.text, end="", flush=True)
            elif isinstance(event, Picture):
                path = next(names)
                save(event.image, path)
                print(f"[{path}]", end="", flush=True)
            elif isinstance(event, End):
                complete = event.complete
    finally:
        print()
    if not complete:
        print("[cut here: as many tokens as it may have]", file=sys.stderr)


def _save_partial(error: IncompleteAnswer, names: Iterator[Path]) -> None:
    """Keeps what there was of a picture that an answer broke off in."""
    from mgpt_edge.runtime.results.metadata import save

    if error.image is not None:
        path = next(names).with_suffix(".partial.png")
        save(error.image, path)
        print(f"[{path}]", file=sys.stderr)


def _free_names(folder: Path, stem: str) -> Iterator[Path]:
    """STEM-1.png, STEM-2.png, … as far as neither they nor parts of them are there."""
    number = 0
    while True:
        number += 1
        path = folder / f"{stem}-{number}.png"
        if not path.exists() and not path.with_suffix(".partial.png").exists():
            yield path
