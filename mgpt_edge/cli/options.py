"""Options that several verbs take, with the words they are explained in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]
Guidance = Annotated[float | None, typer.Option(help="How strictly to follow the words; 1 is as trained.")]
TopK = Annotated[int | None, typer.Option(help="Candidates at each code.")]
TextTopK = Annotated[int | None, typer.Option(help="Candidates at each token of text.")]
Temperature = Annotated[float | None, typer.Option(help="1 is as trained, 0 takes the likeliest.")]
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer; a picture counts with all its tokens.")]
Count = Annotated[int | None, typer.Option(help="Pictures, drawn with seed, seed + 1, …")]
Output = Annotated[Path, typer.Option("-o", "--output", help="PNG file; out-0.png, … with --count.")]
Bundle = Annotated[Path | None, typer.Option("--model", help="Bundle; the small model of the package unless given.")]
VQFolder = Annotated[Path | None, typer.Option(help="Folder of the VQ files, where they are not beside config.json.")]
Records = Annotated[Path, typer.Option(help="Conversations: a JSON list of records, or one on each line.")]
RecordCount = Annotated[int, typer.Option(min=1, help="How many records, drawn from all of them.")]
Threads = Annotated[int | None, typer.Option(help="Threads of every pass; as many as cores may be used unless given.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

OUTPUT = Path("out.png")
