"""Turns the bytes of one sample into arrays, by an allow-list of formats: jpg, png, json, npy, txt.

Nothing here unpickles or executes. Every error is a `DataError` that names shard, key and field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar

import numpy as np
import orjson

from .errors import DataError
from .images import MAX_PIXELS, decode_image
from .schema import BOX_FIELDS, CLASSES, EGO_FIELDS

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png")
_CALIBRATION_SHAPES = {"intrinsics": (3, 3), "distortion": (5,), "extrinsics": (4, 4)}
# The header as numpy.lib.format documents it (versions 1 and 2), read without evaluating what is a Python literal.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY(?:\x01\x00..|\x02\x00....)"
    rb"\{\s*'descr':\s*'(?P<dtype>[^']{1,40})',\s*'fortran_order':\s*(?P<order>True|False),"
    rb"\s*'shape':\s*\((?P<shape>(?:[0-9]{1,12}, ?)*(?:[0-9]{1,12})?)\),?\s*\}",
    re.DOTALL,
)
T = TypeVar("T")


class Sample(TypedDict):
    """One decoded sample: arrays as in `schema` without the batch axis, unpadded (N points, K boxes).

    `images` are uint8 (3, H, W) each, not stacked yet: a batch copies them once.
    """

    key: str
    shard: str
    images: list[np.ndarray]
    intrinsics: np.ndarray
    distortion: np.ndarray
    extrinsics: np.ndarray
    points: np.ndarray
    command: bytes
    ego: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray


def decode_sample(
    members: Mapping[str, bytes | memoryview],
    *,
    key: str,
    shard: str,
    image_size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Sample:
    """Decodes the members (field name -> content) of one sample; fields that are not ours are left alone.

    `image_size` is the (width, height) at which images are delivered, None for their stored size; intrinsics
    are rescaled to match. Raises `DataError` naming shard, key and field for whatever is missing or malformed.
    """

    def field(name: str, decode: Callable[[Any], T], kind: type = bytes) -> T:
        try:
            if name not in members:
                raise DataError(f"missing; the sample has {', '.join(sorted(members))}")
            return decode(kind(members[name]))
        except DataError as error:
            raise DataError(f"{shard}: sample {key!r}: {name}: {error}") from None

    cameras = field("calib.json", _calibration)
    images: list[np.ndarray] = []
    for number, camera in enumerate(cameras):
        name = _image_name(members, number)
        image, stored, scale = field(
            name, lambda raw, name=name: decode_image(raw, name, image_size, max_pixels), memoryview
        )
        expected = images[0].shape[:0:-1] if images else image.shape[:0:-1]
        if stored != (camera["width"], camera["height"]) or image.shape[:0:-1] != expected:
            raise DataError(
                f"{shard}: sample {key!r}: {name}: is {stored[0]}x{stored[1]}, but calib.json says "
                f"{camera['width']}x{camera['height']} and camera 0 was read at {expected[0]}x{expected[1]}"
                " (give an image size to read different cameras alike)"
            )
        camera["intrinsics"][:2] *= scale[:, None]
        images.append(image)
    beyond = _image_name(members, len(cameras))
    if beyond in members:
        raise DataError(f"{shard}: sample {key!r}: {beyond}: calib.json describes {len(cameras)} cameras only")
    classes, boxes = field("boxes.npy", _boxes)
    return Sample(
        key=key,
        shard=shard,
        images=images,
        intrinsics=np.stack([camera["intrinsics"] for camera in cameras]),
        distortion=np.stack([camera["distortion"] for camera in cameras]),
        extrinsics=np.stack([camera["extrinsics"] for camera in cameras]),
        points=field("lidar.npy", lambda raw: _array(raw, (None, 4))),
        command=field("command.txt", _command),
        ego=field("ego.npy", lambda raw: _array(raw, (len(EGO_FIELDS),))),
        boxes=boxes,
        classes=classes,
    )


def _image_name(members: Mapping[str, object], number: int) -> str:
    names = (f"cam{number}.{extension}" for extension in IMAGE_EXTENSIONS)
    return next((name for name in names if name in members), f"cam{number}.jpg")


def _calibration(raw: bytes) -> list[dict[str, Any]]:
    """Per camera: `intrinsics`, `distortion`, `extrinsics` as float32, `width` and `height` as stored."""
    try:
        cameras = orjson.loads(raw)["cameras"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f'expected {{"cameras": [...]}} ({type(error).__name__}: {error})') from None
    if not isinstance(cameras, list) or not cameras or not all(isinstance(entry, dict) for entry in cameras):
        raise DataError("'cameras' must be a list of at least one object")
    result = []
    for number, camera in enumerate(cameras):
        for name in (*_CALIBRATION_SHAPES, "width", "height"):
            if name not in camera:
                raise DataError(f"camera {number} has no {name!r}; it has {', '.join(sorted(camera))}")
        entry: dict[str, Any] = {"width": camera["width"], "height": camera["height"]}
        for name, shape in _CALIBRATION_SHAPES.items():
            try:
                entry[name] = np.array(camera[name], dtype=np.float32)
            except (ValueError, TypeError):
                raise DataError(f"camera {number}: {name!r} must be {shape} numbers") from None
            if entry[name].shape != shape or not np.isfinite(entry[name]).all():
                raise DataError(f"camera {number}: {name!r} must be {shape} finite numbers")
        result.append(entry)
    return result


def _array(raw: bytes, shape: tuple[int | None, ...]) -> np.ndarray:
    """A finite float32 array of `shape` (None: any length) from the bytes of a .npy file of a float type."""
    header = _NPY_HEADER.match(raw[: 1 << 12])
    if header is None:
        raise DataError(f"not a .npy file of one plain array, it begins with {raw[:12]!r}")
    found = tuple(int(size) for size in header["shape"].split(b",") if size.strip())
    kind, fortran = header["dtype"].decode("latin-1"), header["order"] == b"True"
    if not re.fullmatch("[<>=]?f[248]", kind) or len(found) != len(shape) or fortran:
        raise DataError(f"must hold floats of shape {_shape(shape)} in C order, holds {kind!r} {found}")
    dtype = np.dtype(kind)
    if any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
        raise DataError(f"must have shape {_shape(shape)}, has {found}")
    width = 2 if raw[6] == 1 else 4
    content = raw[8 + width + int.from_bytes(raw[8 : 8 + width], "little") :]
    # Before anything is allocated: a header may claim any size.
    if math.prod(found) * dtype.itemsize != len(content):
        raise DataError(f"{dtype} {found} needs {math.prod(found) * dtype.itemsize} bytes, has {len(content)}")
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite: refused below
        array = np.frombuffer(content, dtype).reshape(found).astype(np.float32)
    if not np.isfinite(array).all():
        raise DataError("holds values that are not finite")
    return array


def _shape(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"


def _boxes(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(int64 (K,) classes, float32 (K, 7) boxes)."""
    table = _array(raw, (None, 1 + len(BOX_FIELDS)))
    labels = table[:, 0]
    wrong = (labels < 0) | (labels >= len(CLASSES)) | (labels != np.floor(labels))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"row {row}: class {labels[row]:g} is out of range, 0..{len(CLASSES) - 1} are {CLASSES}")
    if (table[:, 4:7] <= 0).any():
        row = int(np.argmax((table[:, 4:7] <= 0).any(axis=1)))
        raise DataError(f"row {row}: length, width and height are {table[row, 4:7].tolist()}, they must be positive")
    return labels.astype(np.int64), np.ascontiguousarray(table[:, 1:])


def _command(raw: bytes) -> bytes:
    """UTF-8 bytes without surrounding white space."""
    try:
        return raw.decode("utf-8").strip().encode()
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}") from None
