"""The parts of the page that are pure functions, called in the browser that runs them."""

import base64
import io
import random
import wave

import pytest
from PIL import Image

from tests.serve.web.conftest import Playground
from tests.serve.web.fake_chat import FakeChat


@pytest.fixture(scope="module")
def playground(chromium):
    """One page for all of these tests: they keep nothing in it."""
    server = FakeChat()
    page = Playground(chromium.new_page(), server)
    page.open()
    yield page
    page.page.close()
    server.shutdown()
    server.server_close()
    assert page.faults == []


def call(playground, module, expression, given=None):
    """The value of `expression` in `m` (the module) and `given`."""
    code = f"async (given) => {{ const m = await import('/{module}'); return {expression}; }}"
    return playground.page.evaluate(code, given)


STREAM = (
    ": a comment\r\n\r\ndata: one\r\n\r\nevent: x\ndata:two\nid: 7\n\n"
    "data: three\ndata: lines\r\rdata: ü€😀\n\ndata\n\ndata: \n\ndata: never ended"
)
EVENTS = ["one", "two", "three\nlines", "ü€😀", ""]


def test_events_are_the_same_however_the_stream_is_cut(playground):
    rng = random.Random(5)
    cuts = [[STREAM], list(STREAM)]
    for _ in range(50):
        places = sorted(rng.sample(range(1, len(STREAM)), 6))
        pairs = zip([0, *places], [*places, len(STREAM)], strict=True)
        cuts.append([STREAM[a:b] for a, b in pairs])
    found = call(
        playground,
        "sse.js",
        "given.map((cut) => { const p = new m.EventParser(); return cut.flatMap((t) => p.push(t)); })",
        cuts,
    )
    assert all(events == EVENTS for events in found)


def test_bytes_cut_within_a_letter_are_still_that_letter(playground):
    code = """(async () => {
      const bytes = new TextEncoder().encode('data: {"a": "ü€😀"}\\n\\ndata: [DONE]\\n\\ndata: {}\\n\\n');
      const found = [];
      const each = (async function* () { for (const b of bytes) yield new Uint8Array([b]); })();
      for await (const object of m.objects(each)) found.push(object);
      return found;
    })()"""
    assert call(playground, "sse.js", f"await {code}") == [{"a": "ü€😀"}]


def test_a_wav_file_holds_what_was_put_in(playground):
    samples = [0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0]
    data = call(playground, "wav.js", "m.toBase64(m.toWav(Float32Array.from(given), 16000))", samples)
    with wave.open(io.BytesIO(base64.b64decode(data))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        raw = file.readframes(file.getnframes())
    wanted = [0, 16384, -16384, 32767, -32768, 32767, -32768]
    assert [int.from_bytes(raw[i : i + 2], "little", signed=True) for i in range(0, 14, 2)] == wanted
    back = call(playground, "wav.js", "[...m.fromPcm16(m.fromBase64(given))]", base64.b64encode(raw).decode())
    assert back == pytest.approx([0, 0.5, -0.5, 1, -1, 1, -1], abs=1e-4)


def test_base64_of_every_length(playground):
    for size in (0, 1, 2, 3, 70_001):
        raw = random.Random(size).randbytes(size)
        text = base64.b64encode(raw).decode()
        assert call(playground, "wav.js", "m.toBase64(m.fromBase64(given))", text) == text


def image(form):
    out = io.BytesIO()
    Image.new("RGB", (2, 2)).save(out, form)
    return out.getvalue()[:16]


KINDS = [
    (image("PNG"), {"image": "image/png"}),
    (image("JPEG"), {"image": "image/jpeg"}),
    (image("WEBP"), {"image": "image/webp"}),
    (image("GIF"), {"image": "image/gif"}),
    (image("BMP"), {"image": "image/bmp"}),
    (b"RIFF\x24\0\0\0WAVEfmt ", {"audio": "wav"}),
    (b"fLaC\0\0\0\x22", {"audio": "flac"}),
    (b"OggS\0\x02", {"audio": "ogg"}),
    (b"ID3\x04\0", {"audio": "mp3"}),
    (b"\xff\xfb\x90\x64", {"audio": "mp3"}),
    (b"\xff\xf1\x50\x80", None),  # AAC
    (b"RIFF\x24\0\0\0AVI LIST", None),
    (b"<svg xmlns", None),
    (b"%PDF-1.7", None),
    (b"\x89PNG", None),
    (b"", None),
]


def test_a_file_is_what_its_bytes_say(playground):
    given = [list(data) for data, _ in KINDS]
    found = call(playground, "files.js", "given.map((data) => m.sniff(Uint8Array.from(data)))", given)
    assert found == [kind for _, kind in KINDS]


def test_only_media_are_ever_shown(playground):
    def shown(part):
        return call(playground, "files.js", "m.dataUrl(given)", part)

    for url in (
        "http://example.com/a.png",
        "data:text/html;base64,AAAA",
        "javascript:alert(1)",
        'data:image/png;base64,AA" onerror="',
        "",
        None,
    ):
        assert shown({"type": "image_url", "image_url": {"url": url}}) == ""
    long = "return m.dataUrl({ type: 'image_url', image_url: { url } }).length"
    code = f"(() => {{ const url = `data:image/png;base64,${{'A'.repeat(14e6)}}`; {long}; }})()"
    assert call(playground, "files.js", code) == 14_000_022  # the largest file allowed, and more
    good = "data:image/png;base64,AAAA"
    assert shown({"type": "image_url", "image_url": {"url": good}}) == good
    assert shown({"type": "input_audio", "input_audio": {"data": "AA==", "format": "exe"}}) == ""
    sound = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "mp3"}}
    assert shown(sound) == "data:audio/mpeg;base64,AA=="


def test_markdown_becomes_blocks(playground):
    text = (
        "# A *title*\nwords\nmore\n\n1. one\n2. two\n\n   still two\n- x\n> said\n> so\n"
        "```js\nif (a < b) **c**\n```\nlast"
    )
    found = call(playground, "markdown.js", "m.blocks(given)", text)
    assert [(block["kind"], block.get("text", block.get("items"))) for block in found] == [
        ("heading", "A *title*"),
        ("p", "words\nmore"),
        ("ol", ["one", "two"]),
        ("p", "   still two"),
        ("ul", ["x"]),
        ("quote", "said\nso"),
        ("pre", "if (a < b) **c**"),
        ("p", "last"),
    ]


def test_a_late_packet_starts_a_little_later_and_others_at_once(playground):
    starts = call(playground, "sound.js", "[m.startOf(2, 1), m.startOf(0, 1), m.startOf(1, 1)]")
    assert starts == pytest.approx([2, 1.08, 1.08])


def test_the_samples_are_what_they_are_called(playground):
    """The voice says its words in the order of vowels; loud enough, and no click at either end."""
    for name, seconds in (("voice", 1.4), ("sea", 4.0)):
        made = call(playground, "voice.js", f"[...m.{name}()]")
        assert len(made) == round(seconds * 16000)
        assert max(map(abs, made)) == pytest.approx(0.7, abs=1e-3)
        assert abs(made[0]) < 0.01 and abs(made[-1]) < 0.01
