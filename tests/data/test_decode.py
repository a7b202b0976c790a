"""Decoding is safe, exact about calibration, and says which shard, sample and field is wrong."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scalelab.data import images
from scalelab.data.batch import collate
from scalelab.data.decode import Sample, decode_sample
from scalelab.data.errors import DataError
from scalelab.data.generate import render_sample
from scalelab.data.images import decode_image
from scalelab.data.schema import BATCH_KEYS

from .conftest import SPEC

Members = dict[str, bytes]


def members(index: int = 0) -> Members:
    sample = render_sample(SPEC, "train", index)
    return {name: content for name, content in sample.items() if isinstance(content, bytes)}


def decode(fields: Members, **options: object) -> Sample:
    return decode_sample(fields, key="k1", shard="s.tar", **options)  # type: ignore[arg-type]


def npy(array: object, **options: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def picture(mode: str, kind: str, size: tuple[int, int] = (64, 40)) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


def calibration(change: Callable[[dict], object]) -> Callable[[Members], None]:
    def apply(fields: Members) -> None:
        content = orjson.loads(fields["calib.json"])
        change(content)
        fields["calib.json"] = orjson.dumps(content)

    return apply


def put(name: str, content: bytes) -> Callable[[Members], object]:
    return lambda fields: fields.__setitem__(name, content)


class Marker:
    """Would leave a trace if anything unpickled it."""

    def __reduce__(self) -> tuple:
        return (Path.mkdir, (Path("unpickled"),))


def huge_png() -> bytes:
    """A PNG header of 60000 x 60000 pixels, without the pixels."""
    header = b"IHDR" + (60000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")


def huge_jpeg() -> bytes:
    """A JPEG whose header claims 60000 x 60000 pixels."""
    raw = bytearray(simplejpeg.encode_jpeg(np.zeros((40, 64, 3), np.uint8)))
    frame = raw.index(b"\xff\xc0")
    raw[frame + 5 : frame + 9] = (60000).to_bytes(2, "big") * 2
    return bytes(raw)


BOX = [0, 5, 0, 1, 4, 2, 1.5, 0]
WRONG: dict[str, tuple[Callable[[Members], object], str]] = {
    "no image": (lambda m: m.pop("cam1.jpg"), r"cam1\.jpg: missing"),
    "extra image": (put("cam2.png", b"x"), r"cam2\.png: calib\.json describes 2 cameras"),
    "empty image": (put("cam0.jpg", b""), r"cam0\.jpg: the image is empty"),
    "truncated image": (lambda m: m.update({"cam0.jpg": m["cam0.jpg"][:-9]}), r"cam0\.jpg: damaged JPEG"),
    "half an image": (lambda m: m.update({"cam0.jpg": m["cam0.jpg"][:300]}), r"cam0\.jpg: damaged JPEG"),
    "png named jpg": (put("cam0.jpg", picture("RGB", "PNG")), r"cam0\.jpg: the name says JPEG"),
    "grey": (put("cam0.jpg", picture("L", "JPEG")), r"cam0\.jpg: colour space Gray"),
    "cmyk": (put("cam0.jpg", picture("CMYK", "JPEG")), r"cam0\.jpg: colour space (CMYK|YCCK)"),
    "bomb": (put("cam0.jpg", huge_jpeg()), r"cam0\.jpg: the header claims 60000x60000"),
    "other size": (put("cam0.jpg", picture("RGB", "JPEG", (60, 40))), r"cam0\.jpg: is 60x40.*says 64x40"),
    "no json": (put("calib.json", b"{"), r"calib\.json: expected"),
    "no cameras": (put("calib.json", b'{"cameras": []}'), r"calib\.json: .*at least one"),
    "no intrinsics": (calibration(lambda c: c["cameras"][1].pop("intrinsics")), "camera 1 has no 'intrinsics'"),
    "short distortion": (calibration(lambda c: c["cameras"][0].update(distortion=[0])), "'distortion' must be"),
    "text in pose": (calibration(lambda c: c["cameras"][0].update(extrinsics="up")), "'extrinsics' must be"),
    "pickled lidar": (put("lidar.npy", npy(np.array([Marker()]), allow_pickle=True)), r"lidar\.npy: must hold floats"),
    "plain pickle": (put("lidar.npy", b"\x80\x04."), r"lidar\.npy: not a \.npy"),
    "lidar shape": (put("lidar.npy", npy(np.zeros((5, 3)))), r"lidar\.npy: must have shape \(any, 4\)"),
    "lidar cut": (lambda m: m.update({"lidar.npy": m["lidar.npy"][:-4]}), r"lidar\.npy: .*bytes, has"),
    "lidar nan": (put("lidar.npy", npy(np.full((1, 4), np.nan))), r"lidar\.npy: holds values that are not finite"),
    "lidar beyond float32": (put("lidar.npy", npy(np.full((1, 4), 1e300))), r"lidar\.npy: holds values that are not"),
    "lidar claiming": (
        lambda m: m.update({"lidar.npy": m["lidar.npy"].replace(b"(", b"(9999999", 1)[: len(m["lidar.npy"])]}),
        r"lidar\.npy: .*needs \d+ bytes|lidar\.npy: not a",
    ),
    "lidar integers": (put("lidar.npy", npy(np.zeros((1, 4), int))), r"lidar\.npy: must hold floats"),
    "ego shape": (put("ego.npy", npy(np.zeros(5))), r"ego\.npy: must have shape \(6\), has \(5,\)"),
    "not utf-8": (put("command.txt", b"turn \xff"), r"command\.txt: is not UTF-8: byte 5 is 0xff"),
    "no boxes": (lambda m: m.pop("boxes.npy"), r"boxes\.npy: missing; the sample has "),
    "class 3": (put("boxes.npy", npy(np.array([BOX, [3, *BOX[1:]]], float))), "row 1: class 3 is out of range, 0..2"),
    "class 0.5": (put("boxes.npy", npy(np.array([[0.5, *BOX[1:]]], float))), "row 0: class 0.5 is out of range"),
    "flat box": (put("boxes.npy", npy(np.array([[*BOX[:4], 0, 2, 2, 0]], float))), "must be positive"),
}


@pytest.mark.fault(36, 37)
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str) -> None:
    """Each wrong member is a one-line DataError that begins with shard, sample and field."""
    change, words = WRONG[case]
    fields = members()
    change(fields)
    with pytest.raises(DataError, match=words) as error:
        decode(fields)
    assert str(error.value).startswith("s.tar: sample 'k1': ")
    assert "\n" not in str(error.value)
    assert not Path("unpickled").exists()


@pytest.mark.fault(36)
@pytest.mark.parametrize("name", ["cam0.jpg", "cam0.png"])
def test_a_huge_header_is_refused_before_memory_is_taken(name: str) -> None:
    """A picture that claims 11 GB is refused where half a gigabyte is all there is."""
    raw = huge_jpeg() if name.endswith("jpg") else huge_png()
    child = os.fork()
    if child == 0:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + (512 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        try:
            decode_image(raw, name, None)
        except DataError:
            os._exit(0)
        except BaseException:
            os._exit(1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.fault(58)
def test_members_that_are_not_ours_are_never_decoded() -> None:
    """Pickles and modules beside our members are left alone."""
    fields = members() | {"extra.pickle": b"\x80\x04.", "x.pyd": b"x", "weights.pth": b"x"}
    assert [image.shape for image in decode(fields)["images"]] == [(3, 40, 64)] * 2
    assert not Path("unpickled").exists()


@pytest.mark.fault(36, 37)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_members_raise_nothing_but_data_errors(data: st.DataObject) -> None:
    """However the bytes of a member are changed or cut, the sample decodes or a DataError says that it does not."""
    fields = members()
    name = data.draw(st.sampled_from(sorted(fields)))
    content = bytearray(fields[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    fields[name] = bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(DataError):  # anything else fails the test
        decode(fields)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(16, 70), height=st.integers(16, 70), to=st.tuples(st.integers(3, 80), st.integers(3, 80)))
def test_intrinsics_follow_the_image(width: int, height: int, to: tuple[int, int]) -> None:
    """A bright blob stays where its rescaled pixel coordinates say, whatever the stored and the delivered size."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    centre = np.array([0.6 * width, 0.4 * height])
    spread = np.array([width, height]) / 9
    blob = np.exp(-(((x - centre[0]) / spread[0]) ** 2) - ((y - centre[1]) / spread[1]) ** 2)
    raw = simplejpeg.encode_jpeg(np.repeat((255 * blob).astype(np.uint8)[..., None], 3, axis=2), quality=100)
    image, stored, scale = decode_image(raw, "cam0.jpg", to)
    assert (image.shape, stored) == ((3, to[1], to[0]), (width, height))
    weight = image[1].astype(float)
    rows, columns = np.mgrid[0 : to[1], 0 : to[0]] + 0.5
    found = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
    assert np.abs(found - centre * scale).max() < 0.3


@pytest.mark.fault(36)
def test_both_decoders_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without simplejpeg, Pillow delivers the same picture and scale, and says so once for all."""
    source = np.random.Generator(np.random.Philox(1)).integers(0, 255, (3, 5, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(source).resize((161, 99), Image.Resampling.BICUBIC))
    raw = simplejpeg.encode_jpeg(picture, quality=95)
    for size in (None, (80, 50), (41, 25), (40, 24), (200, 120)):
        quick, _, scale = decode_image(raw, "cam0.jpg", size)
        with monkeypatch.context() as patch:
            patch.setattr(images, "simplejpeg", None)
            with pytest.warns(UserWarning, match="simplejpeg is not installed"):
                slow, _, slow_scale = decode_image(raw, "cam0.jpg", size)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pytest.raises(DataError, match=r"60000x60000|too many pixels"):
                    decode_image(huge_jpeg(), "cam0.jpg", size)
                with pytest.raises(DataError, match="damaged JPEG"):
                    decode_image(raw[:-200], "cam0.jpg", size)
        assert np.abs(quick.astype(int) - slow).mean() < 3
        assert np.abs(scale - slow_scale).max() < 0.03


@pytest.mark.fault(36)
def test_png_is_read_and_bounded() -> None:
    """PNG images decode exactly; a header of 3.6 gigapixels, palettes and transparency are refused."""
    source = np.arange(40 * 64 * 3, dtype=np.uint8).reshape(40, 64, 3)
    stream = io.BytesIO()
    Image.fromarray(source).save(stream, "PNG")
    image, _, _ = decode_image(stream.getvalue(), "cam0.png", None)
    assert (image == source.transpose(2, 0, 1)).all()
    for raw, words in ((huge_png(), "too many|60000x60000|damaged"), (picture("RGBA", "PNG"), "colour space RGBA")):
        with pytest.raises(DataError, match=words):
            decode_image(raw, "cam0.png", None)


def test_padding_is_masked_and_rounded() -> None:
    """Ragged points and boxes are zero padded to a multiple, the masks say which are real, and nothing is lost."""
    samples = [decode(members(index)) for index in range(3)]
    samples[1]["points"] = samples[1]["points"][:0]
    samples[2]["boxes"], samples[2]["classes"] = samples[2]["boxes"][:0], samples[2]["classes"][:0]
    batch = collate(samples)
    assert set(batch) == set(BATCH_KEYS)
    assert batch["points"].shape[1] % 1024 == 0
    assert batch["boxes"].shape[1] % 8 == 0
    for row, sample in enumerate(samples):
        for name, mask in (("points", "points_mask"), ("boxes", "boxes_mask")):
            real = batch[mask][row]
            assert int(real.sum()) == len(sample[name])
            assert torch.equal(batch[name][row][real], torch.from_numpy(sample[name]))
            assert not batch[name][row][~real].any()
        assert batch["classes"][row][batch["boxes_mask"][row]].tolist() == sample["classes"].tolist()
        assert (batch["classes"][row][~batch["boxes_mask"][row]] == -1).all()
        text = bytes(int(token) - 1 for token in batch["tokens"][row] if token)
        assert text == sample["command"]
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in batch.items()}
    assert dtypes == dict.fromkeys(BATCH_KEYS, "float32") | {
        "images": "uint8", "tokens": "int64", "classes": "int64", "points_mask": "bool", "boxes_mask": "bool"
    }  # fmt: skip


def test_a_long_command_is_cut_with_a_warning() -> None:
    """Commands beyond the token length are cut, aloud."""
    sample = decode(members() | {"command.txt": ("ä" * 40).encode()})
    with pytest.warns(UserWarning, match="longer than 48 bytes"):
        batch = collate([sample])
    assert batch["tokens"].shape == (1, 48)


def test_different_image_sizes_need_an_image_size() -> None:
    """Samples of other sizes cannot share a batch, and the message says what helps."""
    small, large = decode(members()), decode(members(), image_size=(80, 50))
    with pytest.raises(DataError, match="give an image size"):
        collate([small, large])
