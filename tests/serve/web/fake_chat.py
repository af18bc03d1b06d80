"""A stand-in for `m27 serve`: the page's files under its policy, and answers that need no model.

Speaks the stream of chat completions as documented. What is answered depends on words in the last
message: "draw", "say", "story", "hold" (pauses half-way until `release`), "busy", "secret" (wants a
key), "break" (an error half-way), "long" (many lines). A picture is answered by its colour, a sound
by its length; anything else is said back with the seed. Knows nothing of m27.
"""

import base64
import io
import json
import math
import mimetypes
import struct
import threading
import wave
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import MSG_DONTWAIT, MSG_PEEK
from typing import Any

from PIL import Image, ImageDraw

WEB = Path(__file__).resolve().parents[3] / "m27" / "serve" / "web"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
RATE = 16_000
KEY = "sesame"
SIDE = 128
PACKETS, PACKET = 5, 3200  # a second of sound
LINES = [f"{n}. line {n} of a long answer that needs scrolling" for n in range(1, 41)]


def data_url(image: Image.Image, form: str) -> str:
    """The picture as a data URL, `form` "jpeg" or "png"."""
    out = io.BytesIO()
    image.save(out, form)
    return f"data:image/{form};base64,{base64.b64encode(out.getvalue()).decode()}"


def apple(codes: int) -> Image.Image:
    """A red apple of which `codes` of 64 squares are drawn, row by row; the rest is grey."""
    whole = Image.new("RGB", (SIDE, SIDE), "#f4efe6")
    pen = ImageDraw.Draw(whole)
    pen.ellipse((22, 34, 78, 112), fill="#d8322a")
    pen.ellipse((50, 34, 106, 112), fill="#d8322a")
    pen.line((64, 44, 70, 18), fill="#5d3a1a", width=6)
    pen.ellipse((70, 14, 100, 32), fill="#3f9142")
    seen = Image.new("RGB", (SIDE, SIDE), "#b9b6b0")
    for n in range(codes):
        box = (n % 8 * 16, n // 8 * 16, n % 8 * 16 + 16, n // 8 * 16 + 16)
        seen.paste(whole.crop(box), box)
    return seen


def tone() -> bytes:
    """PCM of 16 bits: PACKETS packets of a note."""
    wave_of = (9000 * math.sin(2 * math.pi * 330 * i / RATE) for i in range(PACKETS * PACKET))
    return struct.pack(f"<{PACKETS * PACKET}h", *map(round, wave_of))


def wav(pcm: bytes) -> bytes:
    """A WAV file of one channel."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(pcm)
    return out.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def image_events(index: int) -> list[dict[str, Any]]:
    """The deltas of a picture: begun, four previews, done."""
    head = {"type": "image", "index": index}
    begun = {**head, "event": "begun", "width": SIDE, "height": SIDE}
    shown = [
        {**head, "event": "progress", "codes": n, "of": 64,
         "image_url": {"url": data_url(apple(n), "jpeg")}}
        for n in (16, 32, 48, 63)
    ]  # fmt: skip
    done = {**head, "event": "done", "image_url": {"url": data_url(apple(64), "png")}}
    return [{"part": part} for part in [begun, *shown, done]]


def audio_events(index: int) -> list[dict[str, Any]]:
    """The deltas of a sound: begun, packets, done."""
    head, pcm = {"type": "audio", "index": index}, tone()
    packets = [
        {**head, "event": "packet",
         "audio": {"data": b64(pcm[at : at + 2 * PACKET]), "format": "pcm16", "sample_rate": RATE}}
        for at in range(0, len(pcm), 2 * PACKET)
    ]  # fmt: skip
    done = {"input_audio": {"data": b64(wav(pcm)), "format": "wav"}, "seconds": 1.0}
    parts = [{**head, "event": "begun", "sample_rate": RATE}, *packets]
    return [{"part": part} for part in [*parts, {**head, "event": "done", **done}]]


def words(text: str) -> list[dict[str, Any]]:
    """The deltas of a text, a word each."""
    return [{"content": word} for word in text.replace(" ", " \0").split("\0")]


def heard(part: dict[str, Any]) -> str:
    """What there is to say of a part that is no text."""
    if part["type"] == "image_url":
        raw = base64.b64decode(part["image_url"]["url"].partition(",")[2])
        image = Image.open(io.BytesIO(raw)).convert("RGB")
        return f"a picture of {image.width}×{image.height}, rgb{image.getpixel((0, 0))}"
    with wave.open(io.BytesIO(base64.b64decode(part["input_audio"]["data"]))) as file:
        seconds = file.getnframes() / file.getframerate()
        return f"{seconds:.1f} s of sound, {file.getnchannels()} channel at {file.getframerate()}"


def answer(body: dict[str, Any]) -> list[Any]:
    """The deltas of an answer; "hold" and an error stand among them as they are."""
    content = body["messages"][-1]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    asked = " ".join(part["text"] for part in parts if part["type"] == "text")
    media = [heard(part) for part in parts if part["type"] != "text"]
    low = asked.lower()
    if media:
        deltas = words(f"I got {' and '.join(media)}.")
    elif "story" in low:
        first, last = words("Once there was **an apple**. "), words("It was eaten. ")
        deltas = [*first, *image_events(1), *last, *image_events(3), *audio_events(4)]
    elif "draw" in low:
        deltas = [*words("Here it is. "), *image_events(1), *words("I like it.")]
    elif "say" in low:
        deltas = audio_events(0)
    elif "long" in low:
        deltas = words("\n".join(LINES))
    else:
        deltas = words(f"You said: {asked} (seed {body['seed']})")
    middle = len(deltas) // 2
    if "hold" in low:
        deltas.insert(middle, "hold")
    if "break" in low:
        deltas[middle:] = [{"error": {"message": "the engine broke off", "type": "server_error"}}]
    return deltas


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: "FakeChat"

    def log_message(self, *_: Any) -> None:
        """Silence; tests look at `requests`."""

    def reply(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, message: str, **headers: str) -> None:
        self.reply(status, "application/json", json.dumps({"error": {"message": message}}).encode(), **headers)

    def do_GET(self) -> None:
        path = self.path.split("?")[0].lstrip("/") or "index.html"
        file = WEB / path
        if path == "v1/models":
            listed = {"object": "list", "data": [{"id": "m27-fake", "object": "model"}]}
            self.reply(200, "application/json", json.dumps(listed).encode())
        elif file.parent == WEB and file.is_file():
            kind = "text/javascript" if file.suffix == ".js" else mimetypes.guess_type(path)[0]
            self.reply(200, str(kind), file.read_bytes())
        else:
            self.refuse(404, f"nothing at {path}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        asked = json.dumps(body["messages"][-1]).lower()
        if "busy" in asked:
            self.refuse(429, "too many requests wait", Retry_After="7")
        elif "secret" in asked and self.headers["Authorization"] != f"Bearer {KEY}":
            self.refuse(401, "a key is needed")
        else:
            self.stream(body)

    def stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        deltas = answer(body)
        try:
            self.event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
            for delta in deltas:
                if delta == "hold":
                    if not self.held():
                        return
                elif "error" in delta:
                    self.event(delta)
                    return
                else:
                    self.event({"choices": [{"index": 0, "delta": delta}]})
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self.event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 120}})
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.server.left.set()

    def event(self, value: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()

    def held(self) -> bool:
        """Wait for the test; False if the page went away instead."""
        while not self.server.release.wait(0.02):
            try:
                gone = self.connection.recv(1, MSG_PEEK | MSG_DONTWAIT) == b""
            except BlockingIOError:
                gone = False
            if gone:
                self.server.left.set()
                return False
        return True


class FakeChat(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1. `requests`: the bodies received, in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.release = threading.Event()
        self.left = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        threading.Thread(target=self.serve_forever, daemon=True).start()
