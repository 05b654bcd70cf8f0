"""Pictures of every kind are read as people see them; hostile files are refused by name, and quickly."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from countgen.evaluation import pictures
from countgen.evaluation.pictures import PictureError, picture_settings, read_picture, to_tensor

HEIGHT, WIDTH = 24, 40


def rgb() -> Image.Image:
    """A picture without symmetry: red to the right, green downwards, blue in one corner."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    blue = np.where((x < 10) & (y < 6), 255, 0)
    pixels = np.stack([x * 255 // WIDTH, y * 255 // HEIGHT, blue], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def stored(tmp_path: Path, image: Image.Image, name: str = "a.png", **options: object) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


def differs(first: Image.Image, second: Image.Image) -> float:
    assert first.mode == second.mode == "RGB" and first.size == second.size
    return float(np.abs(np.asarray(first, float) - np.asarray(second, float)).mean())


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.png", {}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.jpg", {"quality": 98}, 4),
        ("a.jpeg", {"quality": 98, "progressive": True}, 4),
        ("picture-without-suffix", {"format": "PNG"}, 0),
    ],
)
def test_formats_are_read_as_they_are(
    tmp_path: Path, name: str, options: dict[str, object], tolerance: float
) -> None:
    found = read_picture(stored(tmp_path, rgb(), name, **options))
    assert differs(found, rgb()) <= tolerance


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_says(
    tmp_path: Path, name: str, orientation: int
) -> None:
    shown = rgb()
    # What a camera that was held so wrote: the inverse of what viewers do.
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    lying = shown.transpose(inverse[orientation]) if orientation > 1 else shown
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98} if name == "a.jpg" else {}
    options |= {"lossless": True} if name == "a.webp" else {}
    found = read_picture(stored(tmp_path, lying, name, exif=exif, **options))
    assert differs(found, shown) < 5


def test_a_damaged_exif_spoils_no_picture(tmp_path: Path) -> None:
    path = stored(tmp_path, rgb(), "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\x12" * 40)
    assert read_picture(path).size == (WIDTH, HEIGHT)


def test_what_is_transparent_is_seen_on_white(tmp_path: Path) -> None:
    image = rgb().convert("RGBA")
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:, :20], alpha[:, 20:30] = 255, 128
    image.putalpha(Image.fromarray(alpha))
    for name, options in (("a.png", {}), ("a.webp", {"lossless": True, "exact": True})):
        found = np.asarray(read_picture(stored(tmp_path, image, name, **options)), int)
        plain = np.asarray(rgb(), int)
        assert (found[:, :20] == plain[:, :20]).all() and (found[:, 30:] == 255).all()
        half = (plain[:, 20:30] + 255) / 2
        assert np.abs(found[:, 20:30] - half).max() <= 2


def test_palettes_and_grey_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.paste(0, (0, 0, 20, HEIGHT))
    found = np.asarray(read_picture(stored(tmp_path, image, transparency=0)))
    assert (found[:, :20] == 255).all() and (found[:, 20:] == (200, 10, 20)).all()
    grey = Image.new("L", (WIDTH, HEIGHT), 90)
    grey.paste(7, (0, 0, 20, HEIGHT))
    found = np.asarray(read_picture(stored(tmp_path, grey, transparency=7)))
    assert (found[:, :20] == 255).all() and (found[:, 20:] == 90).all()
    found = np.asarray(read_picture(stored(tmp_path, Image.new("1", (WIDTH, HEIGHT), 1))))
    assert (found == 255).all()
    both = np.asarray(read_picture(stored(tmp_path, Image.new("LA", (WIDTH, HEIGHT), (0, 51)))))
    assert np.abs(both.astype(int) - 204).max() <= 1


def sixteen_bit(tmp_path: Path, colour: int, channels: int, values: np.ndarray) -> Path:
    """A PNG of 16 bits a channel, which Pillow cannot write but in grey."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = values.shape[:2]
    lines = values.reshape(height, width * channels).astype(">u2")
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    path = tmp_path / f"deep{colour}.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_a_channel_become_eight(tmp_path: Path, colour: int, channels: int) -> None:
    values = np.linspace(0, 65535, HEIGHT * WIDTH * channels).reshape(HEIGHT, WIDTH, channels)
    if channels in (2, 4):
        values[..., -1] = 65535
    found = np.asarray(read_picture(sixteen_bit(tmp_path, colour, channels, values)), float)
    expected = values[..., : 3 if channels > 2 else 1] / 257
    assert np.abs(found - expected).max() <= 1.01
    assert found.max() > 250 and found.min() == 0


def test_cmyk_is_read_through_its_profile_or_by_the_formula(tmp_path: Path) -> None:
    ink = rgb().convert("CMYK")
    found = read_picture(stored(tmp_path, ink, "a.jpg", quality=98))
    assert differs(found, rgb()) < 6
    broken = stored(tmp_path, ink, "b.jpg", quality=98, icc_profile=b"no profile at all")
    assert differs(read_picture(broken), found) < 1
    # A profile of another kind of colours cannot be applied, and does not stop the reading either.
    wrong = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = stored(tmp_path, ink, "c.jpg", quality=98, icc_profile=wrong)
    assert differs(read_picture(other), found) < 1


def test_tensors_are_what_critics_take(tmp_path: Path) -> None:
    found = to_tensor(read_picture(stored(tmp_path, rgb())))
    assert found.shape == (3, HEIGHT, WIDTH) and found.dtype.is_floating_point
    assert found.min() >= 0 and found.max() <= 1
    assert found[0, 0, -1] == pytest.approx(248 / 255, abs=1 / 255)


# -- refusals ---------------------------------------------------------------------------------------


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), (k, 0, 0)) for k in (0, 90, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def bomb(path: Path) -> None:
    """A few bytes that say they are a picture of 30,000 x 30,000."""
    data = BytesIO()
    Image.new("L", (16, 16)).save(data, "PNG")
    raw = bytearray(data.getvalue())
    raw[16:24] = struct.pack(">II", 30_000, 30_000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    path.write_bytes(raw)


def cut(path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noise.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    ("gone.png", lambda path: None, "no such file"),
    ("folder.png", lambda path: path.mkdir(), "folder"),
    ("empty.png", lambda path: path.write_bytes(b""), "empty"),
    ("text.png", lambda path: path.write_text("three cats"), "no picture"),
    ("a.gif", lambda path: Image.new("RGB", (32, 32)).save(path), "GIF"),
    ("a.bmp", lambda path: Image.new("RGB", (32, 32)).save(path), "BMP"),
    ("a.tiff", lambda path: Image.new("RGB", (32, 32)).save(path), "TIFF"),
    ("as.png", lambda path: Image.new("RGB", (32, 32)).save(path, "GIF"), "GIF"),
    ("pointer.png", lambda path: path.write_text("version https://git-lfs.github.com"), "LFS"),
    ("animated.webp", animated, "animated, with 3 frames"),
    ("animated.png", animated, "animated, with 3 frames"),
    ("bomb.png", bomb, "too large"),
    ("wide.png", lambda path: Image.new("1", (20_000, 9)).save(path), "too large"),
    ("narrow.png", lambda path: Image.new("1", (9000, 9)).save(path), "too narrow"),
    ("small.png", lambda path: Image.new("1", (1, 9)).save(path), "too small"),
    ("cut.png", cut, "damaged"),
    ("cut.jpg", cut, "damaged"),
    ("cut.webp", cut, "damaged"),
    ("header.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0"), "damaged"),
    ("header.jpg", lambda path: path.write_bytes(b"\xff\xd8\xff\xe0"), "damaged"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "make", "word"), REFUSED, ids=[f"{name}-{word}" for name, _, word in REFUSED]
)
def test_what_cannot_be_counted_is_refused_by_name(
    tmp_path: Path, name: str, make: Callable[[Path], object], word: str
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(PictureError) as told:
        read_picture(path)
    assert str(path) in str(told.value) and word in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PictureError, match="no ordinary file"):
        read_picture(tmp_path / "pipe.png")


def test_a_bomb_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    bomb(tmp_path / "bomb.png")
    tracemalloc.start()
    with pytest.raises(PictureError):
        read_picture(tmp_path / "bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_a_text_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    data = BytesIO()
    Image.new("RGB", (16, 16)).save(data, "PNG")
    body = b"zTXt" + b"note\0\0" + zlib.compress(b"x" * 2**27)
    raw = data.getvalue()
    text = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "text.png").write_bytes(raw[:33] + text + raw[33:])
    with pytest.raises(PictureError, match="damaged"):
        read_picture(tmp_path / "text.png")


def test_files_are_not_read_beyond_their_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(tmp_path, rgb())
    monkeypatch.setattr(pictures, "MAX_BYTES", 100)
    with pytest.raises(PictureError, match="MiB"):
        read_picture(path)


def seeds() -> list[bytes]:
    found = []
    for kind, options in (
        ("PNG", {}), ("PNG", {"transparency": (0, 0, 0)}), ("JPEG", {}), ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ):  # fmt: skip
        data = BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        rgb().save(data, kind, exif=exif, **options)
        found.append(data.getvalue())
    data = BytesIO()
    rgb().convert("CMYK").save(data, "JPEG", icc_profile=b"profile" * 20)
    return [*found, data.getvalue()]


@given(
    seed=st.sampled_from(seeds()),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=6),
    keep=st.floats(0.2, 1),
)
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_files_are_read_or_refused_and_nothing_else(
    tmp_path: Path, seed: bytes, changes: list[tuple[float, bytes]], keep: float
) -> None:
    data = bytearray(seed[: int(len(seed) * keep)])
    for place, new in changes:
        start = int(place * len(data))
        data[start : start + len(new)] = new
    path = tmp_path / "hostile"
    path.write_bytes(data)
    try:
        found = read_picture(path)
    except PictureError as error:
        assert str(path) in str(error)
    else:
        assert found.mode == "RGB" and found.width * found.height <= pictures.MAX_PIXELS
    try:
        assert isinstance(picture_settings(path), dict)
    except PictureError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [('{"model": "pocket"}', {"model": "pocket"}), ("[1]", {}), ("{", {}), ("", {})],
)
def test_settings_of_a_picture(tmp_path: Path, text: str, expected: dict[str, str]) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("countgen", text)
    assert picture_settings(stored(tmp_path, rgb(), pnginfo=info)) == expected
    assert picture_settings(stored(tmp_path, rgb(), "b.jpg")) == {}
