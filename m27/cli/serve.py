"""`m27 serve`: the model behind OpenAI's API, with a playground, until it is told to stop."""

import os
from pathlib import Path
from typing import Annotated

import typer

from m27.cli.console import (
    InputError,
    ModelOption,
    PrecisionOption,
    ThreadsOption,
    busy,
    check_model,
    processes,
)


def serve(
    model: ModelOption,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What the model is called; default: its folder.")
    ] = None,
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    keys: Annotated[
        Path | None, typer.Option(help="A file with a key a line: NAME KEY [rpm=N] [concurrent=N] [body=N].")
    ] = None,
    force: Annotated[
        bool, typer.Option(help="Listen at a public address even without keys.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name that a Host header may hold; '*' for any.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="An origin whose pages may ask, as https://example.org.")
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option(help="Fetch pictures from public http(s) addresses.")
    ] = False,
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of a LoRA adapter; may be repeated.")
    ] = None,
    sequences: Annotated[int, typer.Option(help="Answers under way at once.")] = 64,
    waiting: Annotated[int, typer.Option(help="Answers that may wait; more are told 429.")] = 256,
    cache_mb: Annotated[int, typer.Option(help="Room for keys and values.")] = 768,
    max_tokens: Annotated[int, typer.Option(help="The most of one answer.")] = 4096,
    sound_seconds: Annotated[float, typer.Option(help="The longest sound made.")] = 30.0,
    body_mb: Annotated[int, typer.Option(help="The largest request.")] = 32,
    timeout: Annotated[float, typer.Option(help="Seconds for one answer.")] = 600.0,
    requests_a_minute: Annotated[int, typer.Option(help="Of each key; 0: no limit.")] = 0,
    concurrent: Annotated[int, typer.Option(help="Requests at once of each key; 0: no limit.")] = 0,
    drain: Annotated[float, typer.Option(help="Seconds for open answers when stopped.")] = 30.0,
    engine_process: Annotated[
        bool, typer.Option(help="Run the engine in a process of its own, which may die and is started anew.")
    ] = False,
    log_level: Annotated[str, typer.Option(help="info or warning.")] = "info",
    otlp: Annotated[
        str | None, typer.Option(help="Send OpenTelemetry traces to this OTLP/HTTP address.")
    ] = None,
) -> None:
    """Answer over HTTP: OpenAI's API with pictures and sounds, and a page to try it."""
    check_model(model)
    if log_level not in ("info", "warning"):
        raise InputError(f"--log-level {log_level}: is info or warning")
    named = [_named(text) for text in adapter or []]
    from m27.serve.auth import load_keys
    from m27.serve.listen import address, example, listen
    from m27.serve.settings import Settings, check_exposure

    settings = Settings(
        host=host, port=port, name=name or model.resolve().name,
        allowed_hosts=tuple(allow_host or ()), origins=tuple(allow_origin or ()),
        body_bytes=body_mb << 20, answer_tokens=max_tokens, seconds=timeout,
        requests_a_minute=requests_a_minute, concurrent=concurrent, drain_seconds=drain,
        sound_seconds=sound_seconds,
    )  # fmt: skip
    known = load_keys(settings, keys, os.environ.get("M27_API_KEYS"))
    check_exposure(settings, len(known), force)
    listening = listen(host, port)
    from m27.serve import logs, run
    from m27.serve.gate import Gate, GateLimits
    from m27.serve.launch import Launch, in_process, in_thread
    from m27.serve.server import Server
    from m27.serve.trace import traced

    limits = {"sequences": sequences, "waiting": waiting, "cache_bytes": cache_mb << 20}
    with busy("loading the weights"):
        launch = Launch(
            str(model), precision, threads, limits, tuple((n, str(folder)) for n, folder in named), log_level=log_level
        )
        start = in_process if engine_process and processes() == (0, 1) else in_thread
        engine = start(launch, settings.stuck_seconds)
    logs.set_up(log_level)
    gate = Gate(GateLimits(fetch=allow_urls))
    server = Server.of(engine, settings, known, gate, tuple(called for called, _ in named))
    url = address(listening)

    def ready() -> None:
        typer.echo(f"{settings.name} answers at {url}\n\n{example(url, bool(known))}\n")

    run.run(server, listening, ready, traced(otlp))


def _named(text: str) -> tuple[str, str]:
    """NAME=FOLDER as its two halves."""
    called, equals, folder = text.partition("=")
    if not called or not equals:
        raise InputError(f"--adapter {text}: is NAME=FOLDER")
    return called, folder
