"""`m27 chat`: one question, or a conversation in the terminal, with media both ways."""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m27.cli.console import (
    InputError,
    ModelOption,
    Outputs,
    PrecisionOption,
    ThreadsOption,
    busy,
    check_model,
    describe,
    standard_input,
)
from m27.cli.show import show

if TYPE_CHECKING:
    from m27.infer.engine import Engine
    from m27.infer.remote import RemoteEngine
    from m27.infer.request import Request

HELP = "/image FILE  /audio FILE  /reset  /quit"


def chat(
    model: ModelOption,
    prompt: Annotated[
        str | None, typer.Argument(help="What to say; '-' reads it. None: a conversation.")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; may be repeated.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="A sound; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Where pictures and sounds go.")] = Path("out/chat"),
    modalities: Annotated[
        str, typer.Option(help="Media the answer may hold, with commas between.")
    ] = "text,image,audio",
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy; default: 0.2 for text, 1 for pictures, 0.6 for sounds.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.")] = 512,
    guidance: Annotated[
        float | None,
        typer.Option(help="How closely media follow the words; 1 is off. Default: pictures 2.5, sounds 1.5; vllm: 1."),
    ] = None,
    letterbox: Annotated[
        bool, typer.Option(help="Show pictures whole, padded with white; else their middle square.")
    ] = False,
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    engine_name: Annotated[
        str, typer.Option("--engine", help="'local', or 'vllm': servers of the exported model.")
    ] = "local",
    url: Annotated[
        list[str] | None, typer.Option(help="A vLLM server's address; may be repeated.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of a LoRA adapter to answer with.")
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output.")
    ] = False,
) -> None:
    """Ask with words, pictures and sounds; be answered with the same."""
    from m27.infer.request import Request

    if json_output and prompt is None:
        raise InputError("--json needs a prompt")
    if engine_name not in ("local", "vllm"):
        raise InputError(f"--engine {engine_name}: is 'local' or 'vllm'")
    if (engine_name == "vllm") != bool(url):
        raise InputError("--engine vllm and --url go together")
    if url and adapter is not None:
        raise InputError("--adapter is for the local engine; a vLLM server is started with its own")
    if guidance is None and url:
        guidance = 1.0
    if prompt == "-":
        with standard_input() as stream:
            prompt = stream.read()
    request = Request(
        [],
        modalities=tuple(m.strip() for m in modalities.split(",") if m.strip()),
        max_tokens=max_tokens,
        guidance=guidance,
        seed=seed,
        temperature=temperature,
    )
    # Files are read before the weights are: a wrong name is told at once.
    parts = [read_part("image", p, letterbox) for p in image or []]
    parts += [read_part("audio", p) for p in audio or []]
    check_model(model)
    outputs = Outputs(out)
    engine = connect(model, url) if url else load(model, precision, threads, adapter)
    if prompt is None:
        Conversation(engine, request, outputs, letterbox, pending=parts).run()
        return
    parts.append({"type": "text", "text": prompt})
    request = replace(request, messages=[{"role": "user", "content": parts}])
    if not json_output:
        show(engine.stream(request), outputs)
        return
    response = engine.chat(request)
    result = {
        "content": [outputs.save(part) for part in response.content],
        "usage": response.usage.to_json(),
        "seconds": round(response.seconds, 3),
    }
    print(json.dumps(result))


def connect(folder: Path, urls: list[str]) -> "RemoteEngine":
    """The engine over vLLM servers, with tokenizer and codecs of a model folder."""
    from m27.infer.remote import RemoteEngine

    return RemoteEngine.load(folder, urls)


def load(
    folder: Path, precision: str = "auto", threads: int = 0, adapter: Path | None = None
) -> "Engine":
    """The engine of a model folder, with a sign of life while it loads and answers with the adapter."""
    with busy("loading the weights"):
        from m27.infer.engine import Engine

        return Engine.load(folder, precision=precision, threads=threads, adapter=adapter)


def read_part(kind: str, path: Path, letterbox: bool = False) -> dict[str, Any]:
    """A picture or sound file as a message part; raises MediaError, which names the file.

    `letterbox`: the model is shown the picture whole on white, not its middle square.
    """
    from m27.codec import media

    if kind == "image":
        return {"type": "image", "image": media.read_image(path), "letterbox": letterbox}
    return {"type": "audio", "audio": media.read_audio(path)}


@dataclass
class Conversation:
    """The interactive loop. `pending` parts go out with the next message."""

    engine: "Engine | RemoteEngine"
    request: "Request"
    outputs: Outputs
    letterbox: bool = False
    pending: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)

    def run(self, read: Callable[[str], str] = input) -> None:
        """Read lines until /quit or the end of the input."""
        watched = sys.stdin.isatty()
        if watched:
            with suppress(ImportError):
                import readline  # noqa: F401 - importing it gives `input` editing and history
            print(f"{HELP}\n")
        while True:
            try:
                with standard_input():
                    line = read("> " if watched else "").strip()
            except EOFError:
                return
            if line == "/quit":
                return
            if line:
                self.say(line)

    def say(self, line: str) -> None:
        """One line of the user's: a command or a message. Faults of the user's are told."""
        try:
            command, _, rest = line.partition(" ")
            if command in ("/image", "/audio"):
                if not rest.strip():
                    raise InputError(f"{command} needs a file")
                path = Path(rest.strip()).expanduser()
                self.pending.append(read_part(command[1:], path, self.letterbox))
            elif command == "/reset":
                self.messages, self.pending = [], []
            elif command.startswith("/"):
                print(HELP)
            else:
                self._ask(line)
        except Exception as error:
            if (told := describe(error)) is None:
                raise
            print(told, file=sys.stderr)

    def _ask(self, line: str) -> None:
        content = [*self.pending, {"type": "text", "text": line}]
        messages = [*self.messages, {"role": "user", "content": content}]
        try:
            request = replace(self.request, messages=messages)
            shown = show(self.engine.stream(request), self.outputs)
        except KeyboardInterrupt:
            print("\n[stopped]")  # the exchange is forgotten, the conversation goes on
            return
        self.messages = [*messages, {"role": "assistant", "content": shown.content}]
        self.pending = []
