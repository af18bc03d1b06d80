"""`m27 encode` and `m27 decode`: media to codes and back, by the codecs alone."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m27.cli.console import InputError, ModelOption, standard_input

if TYPE_CHECKING:
    import torch


def encode(
    model: ModelOption,
    file: Annotated[Path, typer.Argument(help="A picture or a sound.")],
    height: Annotated[int, typer.Option(help="Pixels, a multiple of 16 up to 512.")] = 128,
    width: Annotated[int, typer.Option(help="Pixels, a multiple of 16 up to 512.")] = 128,
    letterbox: Annotated[
        bool, typer.Option(help="All of the picture, padded with white; else its middle part.")
    ] = False,
) -> None:
    """Print the codes of FILE as one line of JSON."""
    from m27.codec import media

    if media.medium_of(file) == "image":
        if any(side % 16 or not 16 <= side <= 512 for side in (height, width)):
            raise InputError(f"{height} x {width}: sides must be multiples of 16 up to 512")
        rgb = media.read_image(file)
        rgb = media.fit_image(rgb, height, width, letterbox=letterbox, crop=True)
        import torch

        from m27.codec.image import ImageCodec

        image_codec = ImageCodec.load(model)
        pixels_B3HW = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255.0
        codes_hw = image_codec.encode(pixels_B3HW)[0]
        result: dict[str, Any] = {"medium": "image", "codes": codes_hw.tolist()}
        result |= {"grid": list(codes_hw.shape), "codec": image_codec.codes_revision}
    else:
        samples_T = media.read_audio(file)
        import torch

        from m27.codec.audio import AudioCodec

        audio_codec = AudioCodec.load(model)
        codes_N = audio_codec.encode(torch.from_numpy(samples_T)[None])[0]
        seconds = round(len(samples_T) / media.SAMPLE_RATE, 3)
        result = {"medium": "audio", "codes": codes_N.tolist()}
        result |= {"seconds": seconds, "codec": audio_codec.codes_revision}
    print(json.dumps(result))


def decode(
    model: ModelOption,
    codes: Annotated[str, typer.Argument(help="A file that `m27 encode` printed; '-' reads it.")],
    out: Annotated[Path, typer.Option(help="The PNG or WAV file to write.")],
) -> None:
    """Turn codes back into a picture (PNG) or a sound (WAV)."""
    from m27.codec import media

    record = read_codes(codes)
    medium, revision = record["medium"], record.get("codec")
    wanted = ".png" if medium == "image" else ".wav"
    if out.suffix.lower() != wanted:
        noun = "picture" if medium == "image" else "sound"
        raise InputError(f"{out}: the codes are of a {noun}; the file must end in {wanted}")
    import torch

    if medium == "image":
        from m27.codec.image import ImageCodec

        image_codec = ImageCodec.load(model)
        codes_hw = checked(codes, record, math.prod(image_codec.levels), 2)
        _warn(codes, revision, image_codec.codes_revision)
        pixels_3HW = image_codec.decode(codes_hw[None])[0]
        rgb = (pixels_3HW.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
        media.write_png(out, rgb.numpy())
    else:
        from m27.codec.audio import AudioCodec

        audio_codec = AudioCodec.load(model)
        codes_N = checked(codes, record, math.prod(audio_codec.levels), 1)
        _warn(codes, revision, audio_codec.codes_revision)
        media.write_wav(out, audio_codec.decode(codes_N[None])[0].numpy())


def read_codes(name: str) -> dict[str, Any]:
    """The JSON record in the file `name`, or on standard input for "-". Raises `InputError`."""
    try:
        if name == "-":
            with standard_input() as stream:
                text = stream.read()
        else:
            text = Path(name).read_text(encoding="utf-8")
        record = json.loads(text)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{name}: not a JSON file of codes") from None
    if not isinstance(record, dict) or record.get("medium") not in ("image", "audio"):
        raise InputError(f'{name}: "medium" must be "image" or "audio"')
    return record


def checked(name: str, record: dict[str, Any], size: int, dimensions: int) -> "torch.Tensor":
    """The codes of a record as int64 [h, w] (`dimensions` 2) or [N] (1), each in 0..size-1.

    Raises `InputError`; at most 32 x 32 codes a picture and 60,000 (25 minutes) a sound.
    """
    import torch

    rows = record.get("codes")
    if dimensions == 1:
        rows = [rows]
    form = "whole numbers [h, w], at most 32 x 32" if dimensions == 2 else "whole numbers [N]"
    most = (32, 32) if dimensions == 2 else (1, 60_000)
    if not isinstance(rows, list) or not 0 < len(rows) <= most[0]:
        raise InputError(f'{name}: "codes" must be {form}')
    for row in rows:
        fits = isinstance(row, list) and 0 < len(row) <= most[1] and len(row) == len(rows[0])
        if not fits or any(type(code) is not int for code in row):
            raise InputError(f'{name}: "codes" must be {form}')
        for code in row:
            if not 0 <= code < size:
                raise InputError(f"{name}: code {code} is outside 0..{size - 1}")
    codes_hw = torch.tensor(rows, dtype=torch.int64)
    return codes_hw if dimensions == 2 else codes_hw[0]


def _warn(name: str, theirs: Any, ours: str) -> None:
    if theirs is not None and theirs != ours:
        line = f"m27: {name}: made by codec {theirs}, decoded by {ours}; expect noise"
        print(line, file=sys.stderr)
