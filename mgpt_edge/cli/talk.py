"""`mgpt ask` and `mgpt chat`: questions about pictures, and conversations with pictures on both sides."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgpt_edge.cli.drawing import parse_size
from mgpt_edge.cli.options import AsJson, Bundle, MaxTokens, Seed, Temperature, TextTopK
from mgpt_edge.runtime.errors import InvalidRequest, MgptError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

    from mgpt_edge.runtime.answer import Event
    from mgpt_edge.runtime.chat import Chat

HELP = "/image PATH adds a picture to your next message, /quit ends"


def ask(
    image: Annotated[Path, typer.Argument(help="Picture to look at.")],
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    seed: Seed = None,
    temperature: Temperature = None,
    text_top_k: TextTopK = None,
    max_tokens: MaxTokens = None,
    model: Bundle = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question about a picture."""
    from mgpt_edge.runtime.answer import Answer, Text
    from mgpt_edge.runtime.model import load

    settings = {"seed": seed, "temperature": temperature, "text_top_k": text_top_k, "max_tokens": max_tokens}
    events = load(model).stream(question, images=image, task="chat", **settings)
    if as_json:
        answer = Answer.of(events)
        complete = answer.end is not None and answer.end.complete
        print(json.dumps({"answer": answer.text, "complete": complete}, ensure_ascii=False))
        return
    try:
        for event in events:
            if isinstance(event, Text):
                print(event.text, end="", flush=True)
    finally:
        print()


def chat(
    seed: Seed = None,
    temperature: Temperature = None,
    text_top_k: TextTopK = None,
    guidance: Annotated[float | None, typer.Option(help="Of the pictures in answers; 1 is as trained.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT of the pictures in answers.")] = None,
    max_tokens: MaxTokens = None,
    context: Annotated[int | None, typer.Option(help="Tokens that the conversation can hold.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pictures in answers.")] = Path(),
    model: Bundle = None,
) -> None:
    """Talk, with pictures on both sides; one message a line."""
    from mgpt_edge.runtime.model import load

    if not output.is_dir():
        msg = f"{output} is no folder; make it, or give another with -o"
        raise InvalidRequest(msg)
    settings: dict[str, Any] = {
        "seed": seed,
        "temperature": temperature,
        "text_top_k": text_top_k,
        "guidance": guidance,
        "size": None if size is None else parse_size(size),
        "max_tokens": max_tokens,
    }
    conversation = load(model).chat(context=context, **settings)
    if sys.stdin.isatty():
        print(HELP)
    pictures = _free_names(output)
    images: list[Image.Image] = []
    with contextlib.suppress(EOFError):
        while True:
            line = input("> " if sys.stdin.isatty() else "").strip()
            command, _, argument = line.partition(" ")
            if command == "/quit":
                return
            if command == "/image" and argument:
                images += _attach(argument.strip())
            elif command.startswith("/"):
                print(HELP)
            elif line and _answer(conversation, line, images, pictures):
                images = []


def _attach(path: str) -> list[Image.Image]:
    """The picture for the next message, opened now, so that a wrong path is known at once."""
    from mgpt_edge.runtime.pictures import open_picture

    try:
        return [open_picture(path)]
    except MgptError as error:
        print(f"mgpt: {error}", file=sys.stderr)
        return []


def _answer(conversation: Chat, text: str, images: list[Image.Image], names: Iterator[Path]) -> bool:
    """Prints one answer and saves its pictures; an error or Ctrl-C takes the turn back, and False is returned."""
    from mgpt_edge.runtime.errors import IncompleteAnswer
    from mgpt_edge.runtime.metadata import save

    events: Iterator[Event] | None = None
    try:
        events = conversation.stream(text, images)
        _print(events, names)
    except KeyboardInterrupt:
        print("\n[stopped; the message is taken back]", file=sys.stderr)
    except MgptError as error:
        print(f"mgpt: {error}", file=sys.stderr)
        if isinstance(error, IncompleteAnswer) and error.image is not None:
            path = next(names).with_suffix(".partial.png")
            save(error.image, path)
            print(f"[{path}]")
    else:
        print(f"[{conversation.tokens_left} tokens left]", file=sys.stderr)
        return True
    finally:
        if events is not None:
            events.close()  # type: ignore[attr-defined]  it is a generator
    return False


def _print(events: Iterator[Event], names: Iterator[Path]) -> None:
    from mgpt_edge.runtime.answer import Picture, Text
    from mgpt_edge.runtime.metadata import save

    for event in events:
        if isinstance(event, Text):
            print(event.text, end="", flush=True)
        elif isinstance(event, Picture):
            path = next(names)
            save(event.image, path)
            print(f"[{path}]", end="", flush=True)
    print()


def _free_names(folder: Path) -> Iterator[Path]:
    """chat-1.png, chat-2.png, … as far as they are not there."""
    number = 0
    while True:
        number += 1
        path = folder / f"chat-{number}.png"
        if not path.exists():
            yield path
