from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsdformer.data.decoding import WIDEST, find_images, in_channels, middle, open_image
from qsdformer.data.preprocessing import Preprocessing, pixels
from qsdformer.errors import UserError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_images_are_turned_as_their_exif_orientation_says(tmp_path: Path) -> None:
    values = noise(6, 9, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    Image.fromarray(values).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / "turned.png")), np.rot90(values, -1))


def test_damaged_exif_data_do_not_lose_the_image(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_image(tmp_path / "a.jpg").size == (8, 8)


def test_the_first_image_of_an_animation_is_the_one_that_counts(tmp_path: Path) -> None:
    first, second = Image.new("L", (8, 8), 10), Image.new("L", (8, 8), 200)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert set(np.asarray(open_image(tmp_path / "a.gif").convert("L")).ravel()) == {10}


@pytest.mark.parametrize("name", ["a.jpg", "a.eps"])
def test_files_that_pillow_reads_with_other_programs_are_no_images(
    name: str, tmp_path: Path
) -> None:
    head = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    (tmp_path / name).write_text(head + "{} loop\n%%EOF\n")
    with Image.open(tmp_path / name) as image:
        assert image.format == "EPS"
    with pytest.raises(UserError, match="not an image"):
        open_image(tmp_path / name)


def test_pipes_and_sockets_are_never_opened(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo("pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        for name in ("pipe.png", "socket.png"):
            with pytest.raises(UserError, match=f"{name}: not a regular file"):
                open_image(name)
        assert find_images(".") == ([], ["./pipe.png", "./socket.png"])


def test_hidden_files_are_passed_over_and_other_files_are_listed(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "inner").mkdir()
    names = ("b.PNG", "inner/a.gif", ".hidden/c.png", "._d.png", "notes.txt", "inner/.DS_Store")
    for name in names:
        (tmp_path / name).touch()
    images, others = find_images(tmp_path)
    assert images == [str(tmp_path / "b.PNG"), str(tmp_path / "inner/a.gif")]
    assert others == [str(tmp_path / "notes.txt")]


def test_loops_of_links_give_every_image_once(tmp_path: Path) -> None:
    cats = tmp_path / "root" / "cats"
    (cats / "more").mkdir(parents=True)
    for name in ("a.png", "more/b.png"):
        (cats / name).touch()
    for place, target in (("up", ".."), ("self", "."), ("top", "../.."), ("more/back", "..")):
        (cats / place).symlink_to(target)
    (cats / "loop").symlink_to("loop")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/c.png").touch()
    (cats / "linked").symlink_to(tmp_path / "elsewhere")
    (cats / "gone.png").symlink_to("nowhere.png")
    found, _ = find_images(cats)
    names = [os.path.relpath(path, cats) for path in found]
    assert names == ["a.png", "gone.png", "linked/c.png", "more/b.png"]


def test_extreme_sides_are_cut_to_the_middle_and_all_others_left_alone() -> None:
    for size in ((1, WIDEST), (WIDEST * 3, 3), (20, 31)):
        image = Image.new("L", size)
        assert middle(image) is image
    wide = Image.fromarray(np.arange(200, dtype=np.uint8)[None].repeat(2, axis=0))
    assert np.asarray(middle(wide)).tolist() == [list(range(84, 116))] * 2
    assert middle(Image.new("L", (3, 99))).size == (3, 49)  # an odd rest keeps the centre


@pytest.mark.parametrize("size", [(1, 17), (1, 18), (2, 51), (10, 400), (400, 10)])
def test_a_centre_crop_of_the_middle_is_that_of_the_whole(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(noise(*size, 3))
    pre = Preprocessing(
        image_size=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic"
    )
    found = pixels([image], pre)
    monkeypatch.setattr("qsdformer.data.preprocessing.middle", lambda image: image)
    assert np.array_equal(found, pixels([image], pre))


def test_a_thin_image_needs_little_memory(tmp_path: Path) -> None:
    Image.new("RGB", (1, 2_000_000), "red").save(tmp_path / "thin.png")
    code = f"""
from pathlib import Path
from qsdformer.data.decoding import open_image
from qsdformer.data.preprocessing import (pixels)
from qsdformer.data.preprocessing import Preprocessing
def peak():  # of this process alone: ru_maxrss begins with what its parent had
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
image = open_image({str(tmp_path / "thin.png")!r})
before = peak()
pre = Preprocessing(image_size=224, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.875)
assert pixels([image], pre).shape == (1, 3, 224, 224)
print(peak() - before)
import sys
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60_000  # kB; the whole would be 256 x 512 million pixels


@pytest.mark.parametrize("name", ["a.png", "a.pgm", "a.tif"])
def test_sixteen_bits_are_scaled_down_and_not_clipped(tmp_path: Path, name: str) -> None:
    ramp = np.arange(0, 2**16, 1024, dtype=np.uint16).reshape(8, 8)
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 8 8 65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(tmp_path / name)
    assert np.array_equal(np.asarray(open_image(tmp_path / name)), ramp >> 8)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_of_32_bits_are_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.ones((8, 8), kind)).save(tmp_path / "a.tif")
    with pytest.raises(
        UserError, match="it has numbers of 32 bits: convert it to 8 or 16; replace"
    ):
        open_image(tmp_path / "a.tif")


def test_colours_that_pillow_cannot_convert_are_one_line() -> None:
    with pytest.raises(UserError, match="cannot make LAB grey or RGB: convert the image"):
        in_channels(Image.new("LAB", (8, 8)), 1)
