"""formats.py: what is on the list is known by its first bytes, and what is not is named."""

import pytest

from m27.codec import formats, media
from m27.codec.media import MediaError, read_audio, read_image
from tests.serve import samples


@pytest.mark.parametrize("kind", [*samples.PICTURES, *samples.SOUNDS])
def test_every_allowed_format_is_known_by_its_first_bytes(kind: str) -> None:
    data = samples.picture(kind) if kind in samples.PICTURES else samples.sound(kind)
    assert formats.sniff(data) == kind
    other = read_audio if kind in samples.PICTURES else read_image
    with pytest.raises(MediaError, match=f"{kind} data, not a"):
        other(data)


@pytest.mark.parametrize("name", list(samples.strangers()))
def test_what_is_not_on_the_list_is_refused_by_its_name(name: str) -> None:
    data = samples.strangers()[name]
    assert formats.sniff(data) is None
    for read in (read_image, read_audio):
        with pytest.raises(MediaError, match=name) as caught:
            read(data)
        assert caught.value.code == "unsupported_format"


def test_no_decoder_is_opened_for_what_is_not_on_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    import soundfile
    from PIL import Image

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a decoder was opened")

    strangers = samples.strangers()
    monkeypatch.setattr(Image, "open", opened)
    monkeypatch.setattr(soundfile, "SoundFile", opened)
    for data in strangers.values():
        with pytest.raises(MediaError):
            read_image(data)
        with pytest.raises(MediaError):
            read_audio(data)


def test_a_picture_is_offered_to_its_own_decoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    asked = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda f, formats: asked.append(formats) or real(f, formats=formats))
    for kind in samples.PICTURES:
        read_image(samples.picture(kind))
    assert asked == [(kind,) for kind in samples.PICTURES]


def test_a_sound_that_is_not_what_it_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    aiff = samples.sound("AIFF")
    monkeypatch.setattr(media, "sniff", lambda data: "WAV")
    with pytest.raises(MediaError, match="not what its first bytes say"):
        read_audio(aiff)


def test_formats_can_be_taken_off_the_list() -> None:
    limits = media.Limits(formats=("PNG", "WAV"))
    assert read_image(samples.picture("PNG"), limits).shape == (40, 60, 3)
    with pytest.raises(MediaError, match="GIF is not accepted here"):
        read_image(samples.picture("GIF"), limits)
    with pytest.raises(MediaError, match="MP3 is not accepted here"):
        read_audio(samples.sound("MP3"), limits)


def test_tags_before_an_mp3_are_skipped_however_they_lie() -> None:
    mp3 = samples.sound("MP3")
    plain = read_audio(mp3).tolist()
    for before in (samples.id3(50, bytes(50)), samples.id3(0) * 3, samples.id3(4, b"abcd") + bytes(900)):
        assert read_audio(before + mp3).tolist() == plain
    for lie in (samples.id3(2**28 - 1) + mp3, samples.id3(0) * 100 + mp3, samples.id3(0), b"ID3"):
        with pytest.raises(MediaError, match="ID3 tag without"):
            read_audio(lie)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", *samples.PICTURES])
def test_short_beginnings_are_no_trouble(kind: str) -> None:
    data = samples.picture(kind) if kind in samples.PICTURES else samples.sound(kind)
    for length in range(1, 80):
        formats.sniff(data[:length])
        formats.stranger(data[:length])
        with pytest.raises(MediaError):
            (read_image if kind in samples.PICTURES else read_audio)(data[: min(length, 40)])
