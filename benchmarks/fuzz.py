"""Damaged and hostile files of every kind that users give, by the thousand: each is read, or refused in one sentence.

    python benchmarks/fuzz.py --count 20000 --seed 0 --findings findings

A case is a small sound file that is mutated, given to the functions that users call, in a forked process. It may end in
success or in a `TcgnError` of one line, below 600 characters, that names the file. Anything else is a finding: another
exception, a case of more than 30 s or 2 GiB, a process that dies, a traceback on stderr, and on the
command line an exit code but 0, 1 and 2. What is found is kept with its file, and tried again by ``--only SEED:NUMBER``.
"""

# ruff: noqa: E501, BLE001, D102 - a table of odd values is not read more easily when it is broken up
from __future__ import annotations

import argparse
import gzip
import io
import json
import logging
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests")]

_HANG_S = 30
_MOST_BYTES = 2 << 30
_ADDRESSES = 12 << 30  # beyond what a process has at its start: this machine is not to be taken down
_LONGEST = 600
_BATCH = 100
ODD = (0, 1, 2, 3, 7, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 16, 2**63, 2**64 - 1)
WORDS = (
    *("", " ", "0", "-1", "1e999", "nan", "inf", "-inf", "9" * 5000, "1" * 30, "0x10", "1_000", "True", "FALSE"),
    *("None", "\0", "\n", '"', "'", "../../etc/passwd", "/dev/null", "/", ".", "é", "\ud83d", "µ", "x" * 100_000),
    *(",,,,", "=1+1", "1,5", "1.5.2", "\u202e", "\ufeff", "-0", "1e-320", "a" * 300),
)
VALUES = (
    *(None, True, False, 0, 1, -1, 2**63, 2**64, -(2**31), 10**400, 0.5, 1e308, math.nan, math.inf, "", "x", "\0"),
    *("x" * 2000, "a\nb", [], {}, [[]], {"": None}, [None], ["a", 1], [1e400], {"a": {"b": []}}, "\ud800", "../x"),
)
Mutator = Callable[[bytes, random.Random], bytes]


# mutations


def bits(data: bytes, rng: random.Random, *, first: int = 0) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        if out:
            out[rng.randrange(min(first or len(out), len(out)))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut_short(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((0, 1, 4, 8, 16, 100, rng.randrange(len(data) + 1), max(0, len(data) - 1)))]


def spliced(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return data
    a, b, n = rng.randrange(len(data)), rng.randrange(len(data)), rng.randrange(1, 4096)
    other = rng.choice((data[b : b + n], rng.randbytes(n), b"\0" * n, b"\xff" * n, b""))
    return data[:a] + other + data[a + rng.choice((0, n, len(other))) :]


def odd_number(data: bytes, rng: random.Random) -> bytes:
    if len(data) < 16:
        return data
    out = bytearray(data)
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(min(len(data) - 8, rng.choice((64, 1024, len(data)))))
    number = (rng.choice(ODD) if rng.random() < 0.8 else rng.getrandbits(64)) % 2 ** (8 * size)
    out[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
    return bytes(out)


ANY: list[Mutator] = [partial(bits, first=1024), partial(bits, first=64), bits, cut_short, spliced, odd_number]


def tags(data: bytes, rng: random.Random) -> bytes:
    """A tag of a TIFF of another type, count or value, or a directory that leads elsewhere."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return odd_number(data, rng)
    big = struct.unpack(order + "H", data[2:4])[0] == 43
    word, size, entry, head = ("Q", 8, 20, 8) if big else ("I", 4, 12, 2)
    out, places, ends = bytearray(data), [], []
    at = 8 if big else 4
    try:
        offset = struct.unpack_from(order + word, data, at)[0]
        starts = []
        while offset and offset not in starts and len(starts) < 8:
            starts.append(offset)
            number = struct.unpack_from(order + ("Q" if big else "H"), data, offset)[0]
            places += [offset + head + entry * i for i in range(min(number, 100))]
            ends.append(offset + head + entry * number)
            offset = struct.unpack_from(order + word, data, ends[-1])[0]
        for _ in range(rng.choice((1, 1, 2, 4))):
            what = rng.random()
            if what < 0.15:
                struct.pack_into(order + word, out, rng.choice(ends), rng.choice((*starts, 0, 8, 2**32 - 1, len(data))))
            elif what < 0.2:
                struct.pack_into(
                    order + ("Q" if big else "H"), out, rng.choice(starts), rng.choice((0, 1, 4000, 65535))
                )
            elif what < 0.9:
                place = rng.choice(places)
                kind = rng.random()
                if kind < 0.15:
                    struct.pack_into(order + "H", out, place, rng.choice((*range(254, 350), 65535, 33550, 34665)))
                elif kind < 0.3:
                    struct.pack_into(order + "H", out, place + 2, rng.randrange(20))
                elif kind < 0.5:
                    struct.pack_into(order + word, out, place + 4, rng.choice(ODD) % 2 ** (8 * size))
                elif kind < 0.7:
                    struct.pack_into(order + "H", out, place + 4 + size, rng.choice(ODD) % 65536)
                else:
                    struct.pack_into(order + word, out, place + 4 + size, rng.choice((*ODD, *starts)) % 2 ** (8 * size))
            else:
                return ANY[rng.randrange(len(ANY))](bytes(out), rng)
    except (struct.error, IndexError):
        return odd_number(bytes(out), rng)
    return bytes(out)


def chunks(data: bytes, rng: random.Random) -> bytes:
    """A PNG with another header or a chunk more, with the right sums."""
    if data[:4] != b"\x89PNG":
        return spliced(data, rng)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = bytearray(data[16:29])
    if rng.random() < 0.6:
        struct.pack_into(">I", head, rng.choice((0, 4)), rng.choice((*ODD[:-2], 20_000, 60_000)))
    if rng.random() < 0.4:
        head[rng.randrange(8, 13)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    kind = rng.choice(
        (b"eXIf", b"iCCP", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"gAMA")
    )
    content = rng.choice(
        (b"", rng.randbytes(40), b"\0" * 9, b"a\0\0" + zlib.compress(b"\0" * 5_000_000), b"II*\0\x08\0\0\0")
    )
    more = chunk(kind, content) if rng.random() < 0.6 else b""
    return data[:8] + chunk(b"IHDR", bytes(head)) + more + data[33:]


def segments(data: bytes, rng: random.Random) -> bytes:
    """A JPEG of other dimensions, or with a segment more."""
    if data[:2] != b"\xff\xd8":
        return spliced(data, rng)
    out = bytearray(data)
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    if at > 0 and rng.random() < 0.6:
        struct.pack_into(">H", out, at + rng.choice((5, 7)), rng.choice((0, 1, 255, 30_000, 65535)))
    exif = b"Exif\0\0" + tags(b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0", rng)
    content = rng.choice(
        (exif, b"Adobe" + rng.randbytes(7), b"JFIF\0" + rng.randbytes(9), b"ICC_PROFILE\0" + rng.randbytes(30))
    )
    more = (
        b"\xff"
        + rng.choice((b"\xe1", b"\xee", b"\xe0", b"\xe2", b"\xdd", b"\xdb"))
        + struct.pack(">H", len(content) + 2)
    )
    return bytes(out[:2]) + (more + content if rng.random() < 0.7 else b"") + bytes(out[2:])


def document(data: bytes, rng: random.Random) -> bytes:
    """JSON with a value of another type, less or more of it, or nested beyond reason."""
    try:
        found = json.loads(data)
    except ValueError:
        return spliced(data, rng)
    what = rng.random()
    if what < 0.05:
        depth = rng.choice((900, 5000, 100_000))
        return rng.choice((b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth))
    if what < 0.08:
        return json.dumps(rng.choice(VALUES)).encode()
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        parent, key, at = None, None, found
        while isinstance(at, (dict, list)) and at and (parent is None or rng.random() < 0.8):
            parent, key = at, rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
            at = at[key]
        if parent is None:
            return json.dumps(rng.choice(VALUES)).encode()
        if rng.random() < 0.2:
            del parent[key]
        elif isinstance(parent, dict) and rng.random() < 0.1:
            parent[rng.choice(WORDS)[:200]] = rng.choice(VALUES)
        else:
            parent[key] = rng.choice(VALUES)
    text = json.dumps(found).encode()
    return text.replace(b'"', rng.choice((b"'", b"")), 1) if rng.random() < 0.03 else text


def cells(data: bytes, rng: random.Random) -> bytes:
    """A table with another cell, row or column."""
    text = data.decode("utf-8", "replace")
    tab = "\t" if "\t" in text else ","
    rows = [line.split(tab) for line in text.split("\n")]
    for _ in range(rng.choice((1, 1, 2, 5))):
        row = rng.choice(rows)
        column = rng.randrange(len(row)) if row else 0
        what = rng.randrange(9)
        if what < 4 and row:
            row[column] = rng.choice(WORDS)
        elif what == 4:
            del row[column : column + 1]
        elif what == 5:
            row.insert(column, rng.choice(WORDS))
        elif what == 6:
            for each in rows:
                del each[column : column + 1]
        elif what == 7:
            rows.append(list(row))
        else:
            rows.insert(0, [rng.choice(WORDS)] * rng.choice((1, 7, 2000)))
    out = "\n".join(tab.join(row) for row in rows).encode("utf-8", "surrogatepass")
    return rng.choice((out, out, out, out.decode("utf-8", "replace").encode("utf-16"), out.replace(b"\n", b"\r")))


def zipped(mutate: Mutator) -> Mutator:
    """A mutation of what is in a .gz."""

    def inside(data: bytes, rng: random.Random) -> bytes:
        return gzip.compress(mutate(gzip.decompress(data), rng), 1)

    return inside


def header(data: bytes, rng: random.Random) -> bytes:
    """The JSON that a .safetensors begins with."""
    size = int.from_bytes(data[:8], "little")
    changed = document(data[8 : 8 + size], rng)
    return len(changed).to_bytes(8, "little") + changed + data[8 + size :]


def xml(data: bytes, rng: random.Random) -> bytes:
    """A TIFF whose description, OME-XML mostly, says something else; its length stays."""
    start = data.find(b"<?xml")
    end = data.find(b"</OME>", start) + 6
    if start < 0 or end < start:
        return tags(data, rng)
    text = data[start:end].decode("utf-8", "replace")
    numbers = list(re.finditer(r'="([^"]*)"', text))
    for _ in range(rng.choice((1, 1, 3))):
        match = rng.choice(numbers)
        word = rng.choice((*WORDS, "um", "px", "XYZTC", "uint16", "float"))[: len(match[1])]
        text = (
            text[: match.start(1)]
            + word.replace('"', "").replace("\n", " ").ljust(len(match[1]))[: len(match[1])]
            + text[match.end(1) :]
        )
    if rng.random() < 0.1:
        bomb = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + "".join(
            f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
        )
        text = (bomb + "]><OME>&j;</OME>").ljust(len(text))[: len(text)]
    return data[:start] + text.encode("utf-8", "replace")[: end - start].ljust(end - start) + data[end:]


# seeds


def write_seeds(folder: Path) -> None:
    """Small sound files of every kind, each kind in a folder of its own."""
    import h5py
    import numpy as np
    import onnx_file
    import sections as drawn
    import timm
    import torch
    from PIL import Image
    from timm.models import save_for_hf

    from tcgn_hub.units import UNITS
    from tcgn_hub.weights.info import WeightsInfo

    def made(name: str) -> Path:
        (folder / name).mkdir(parents=True)
        return folder / name

    rng = np.random.default_rng(0)
    noise = np.asarray(Image.fromarray(rng.integers(90, 220, (24, 30, 3), np.uint8)).resize((300, 240)))
    _tiffs(made("tiff"), noise)
    slides = ROOT / "tests" / "fixtures" / "slides" / "OS-1-detail.ome.tif", ROOT / "examples" / "cmu_small_region.svs"
    for slide in slides:
        shutil.copy(slide, made(slide.suffix[1:] if slide.suffix == ".svs" else "ome") / slide.name)
    picture = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 96.0
    for suffix in ("png", "jpg", "webp", "bmp", "gif", "jp2", "ico", "tga", "ppm"):
        at = made(suffix)
        picture.save(at / f"a.{suffix}")
        if suffix in ("png", "jpg", "webp"):
            picture.save(at / f"exif.{suffix}", exif=exif, **({"dpi": (50800, 50800)} if suffix != "webp" else {}))
        if suffix == "png":
            for mode in ("L", "LA", "RGBA", "P", "1", "I;16"):
                grey = Image.fromarray(noise[..., 0].astype(np.uint16) << 8)
                (grey if mode == "I;16" else picture.convert(mode)).save(at / f"{mode.replace(';', '')}.png")
        if suffix == "jpg":
            picture.convert("CMYK").save(at / "cmyk.jpg")
            picture.save(at / "progressive.jpg", progressive=True)
    _dicom(made("dicom"), noise)
    _zarrs(made("zarr"), noise)
    _bombs(made("bomb"))

    at = made("spots")
    names, array, xy = drawn.visium_array()
    lines = [f"{n},1,{r},{c},{y:.1f},{x:.1f}" for n, (r, c), (x, y) in zip(names, array, xy, strict=True)]
    (at / "tissue_positions_list.csv").write_text("\n".join(lines) + "\n")
    columns = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"
    (at / "tissue_positions.csv").write_text("\n".join([columns, *lines]) + "\n")
    (at / "xy.csv").write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in xy))
    drawn.write_visium(folder / "parquet" / "outs", positions="parquet", image=False)
    shutil.move(folder / "parquet" / "outs" / "spatial" / "tissue_positions.parquet", folder / "parquet")
    shutil.rmtree(folder / "parquet" / "outs")
    drawn.write_section(made("her2st"), "B1", spots=5)
    shutil.copy(folder / "her2st" / "ST-spotfiles" / "B1_selection.tsv", at)
    drawn.write_h5ad(folder / "h5ad" / "section.h5ad", uns={"spatial": {"a": {"metadata": {"x": 1}}}, "patient": "P"})
    shutil.copytree(folder / "h5ad", folder / "spots_h5ad")
    drawn.write_visium(folder / "visium_h5" / "outs")
    drawn.write_visium(folder / "visium_mtx" / "outs", counts="mtx", positions="v1")
    for kind in ("visium_h5", "visium_mtx"):
        for name in ("hires", "lowres"):
            (folder / kind / "outs" / "spatial" / f"tissue_{name}_image.png").unlink()
    drawn.write_h5ad(folder / "sheet" / "one.h5ad")
    (folder / "sheet" / "sheet.csv").write_text("section,patient,data,image,mpp,study\nS,P,one.h5ad,one.png,0.5,x\n")
    drawn.write_patches(folder / "patches")
    drawn.write_bulk(folder / "bulk", slides=1)

    torch.manual_seed(0)
    model = timm.create_model("test_tcgn", num_classes=12).eval()
    stated = {
        "units": UNITS,
        "crop": {"patch_um": 154},
        "training_data": {"name": "drawn"},
        "license": "MIT",
        "origin": "drawn",
    }
    stated |= {"held_out": {"pcc": [0.1] * 12, "significant": drawn.PANEL[:3], "interval_radius": [0.1] * 12}}
    stated |= {"seen": [{"study": "s", "patient": "P", "section": "S1"}], "parents": [{"name": "a", "sha256": "b"}]}
    pooled = rng.normal(size=(60, 1, 1280)).astype(np.float32)[:, 0]
    with torch.inference_mode():
        width = model.forward_features(torch.zeros(1, 3, 224, 224)).shape[1]
    from tcgn_hub.prediction.ood import describe

    stated["ood"] = describe([pooled[:, :width]]).to_json()
    save_for_hf(
        model.half(),
        folder / "model",
        model_config={"label_names": drawn.PANEL, "tcgn": stated},
        safe_serialization=True,
    )
    shutil.copytree(folder / "model", folder / "config")
    torch.save(model.state_dict(), made("pickle") / "model.pt")
    torch.save(
        {"model": {"a": torch.zeros(3)}, "epoch": 1, "fingerprint": {"recipe": {}}}, made("resume") / "checkpoint.pt"
    )
    info = WeightsInfo.from_json(stated, name="x", genes=tuple(drawn.PANEL))
    onnx_file.write(made("onnx") / "model.onnx", info)
    shutil.copy(ROOT / "tcgn_hub" / "weights_manifest.json", made("manifest"))
    (made("panel") / "panel.txt").write_text("\n".join(drawn.PANEL) + "\n")
    (made("split") / "splits.json").write_text('{"train": ["a", "b"], "val": [], "test": ["c"]}\n')
    run = {"format": "tcgn_hub slide 1", "run": {"slide": ["a", 1, 2], "weights": "x", "genes": None}}
    (made("run") / "run.json").write_text(json.dumps(run))
    (made("metadata") / "metadata.json").write_text(
        json.dumps({key: stated[key] for key in ("units", "crop", "license")})
    )
    np.savez(
        made("npz") / "held_out.npz",
        sections=np.array([["S", "P"]]),
        **{f"0.{k}": np.ones((2, 2), np.float32) for k in ("xy", "targets", "predicted")},
    )
    with h5py.File(folder / "h5ad" / "other.h5", "w") as file:
        file["a"] = 1
    (folder / "h5ad" / "other.h5").unlink()


def _tiffs(at: Path, noise: Any) -> None:
    import numpy as np
    import tifffile

    def write(name: str, pixels: Any = noise, **options: Any) -> None:
        tifffile.imwrite(at / f"{name}.tif", pixels, **options)

    rgb = {"photometric": "rgb"}
    for codec in ("none", "deflate", "lzw", "zstd", "jpeg", "webp", "jpeg2000", "lzma", "packbits", "jpegxl", "png"):
        write(codec, compression=None if codec == "none" else codec, tile=(64, 64), **rgb)
    write("big", bigtiff=True, tile=(64, 64), **rgb)
    write("motorola", byteorder=">", tile=(64, 64), compression="deflate", **rgb)
    write(
        "strips", rowsperstrip=16, compression="deflate", resolution=(20000, 20000), resolutionunit="CENTIMETER", **rgb
    )
    write("planes", np.moveaxis(noise, 2, 0), planarconfig="separate", tile=(64, 64), **rgb)
    write("sixteen", noise.astype(np.uint16) << 8, tile=(64, 64), predictor=True, compression="deflate", **rgb)
    write("float", noise.astype(np.float32), tile=(64, 64), **rgb)
    write("grey", noise[..., 0], tile=(64, 64))
    write("stack", np.stack([noise[..., 0]] * 3), tile=(64, 64), photometric="minisblack")
    write("alpha", np.dstack([noise, noise[..., :1]]), extrasamples=["unassalpha"], tile=(64, 64), **rgb)
    write("palette", noise[..., 0], colormap=np.arange(768, dtype=np.uint16).reshape(3, 256), photometric="palette")
    write("imagej", np.moveaxis(noise, 2, 0), imagej=True, resolution=(2, 2), metadata={"axes": "CYX", "unit": "um"})
    write("subsampled", tile=(64, 64), compression="jpeg", subsampling=(2, 2), photometric="ycbcr")
    meta = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "SignificantBits": 8}
    for name, big in (("pyramid.ome", False), ("bigpyramid.ome", True)):
        with tifffile.TiffWriter(at / f"{name}.tif", bigtiff=big, ome=True) as out:
            out.write(noise, subifds=2, metadata=meta, tile=(64, 64), compression="deflate", **rgb)
            for step in (2, 4):
                out.write(noise[::step, ::step], subfiletype=1, tile=(64, 64), compression="deflate", **rgb)
    channels = {"axes": "CYX", "Channel": {"Name": ["red", "green", "blue"]}}
    tifffile.imwrite(at / "channels.ome.tif", np.moveaxis(noise, 2, 0), metadata=channels, photometric="minisblack")
    with tifffile.TiffWriter(at / "reduced.tif") as out:
        for step in (1, 2, 4):
            out.write(noise[::step, ::step], subfiletype=int(step > 1), tile=(64, 64), **rgb)


def _dicom(at: Path, noise: Any) -> None:
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = "1.2.840.10008.5.1.4.1.1.77.1.6", ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["a"])
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.ImageType = generate_uid(entropy_srcs=["b"]), ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.Rows, data.Columns, data.SamplesPerPixel, data.BitsAllocated = 240, 300, 3, 8
    data.BitsStored, data.HighBit, data.PixelRepresentation, data.PlanarConfiguration = 8, 7, 0, 0
    data.PhotometricInterpretation, data.NumberOfFrames = "RGB", 1
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = 300, 240
    data.InstanceNumber, data.PixelSpacing = 1, [0.0005, 0.0005]
    data.PixelData = noise.tobytes()
    for name in ("a.dcm", "b.dcm"):
        data.save_as(at / name, enforce_file_format=True)


def _zarrs(at: Path, noise: Any) -> None:
    """An image of either version of OME-Zarr, of two levels; of the second one with shards."""
    import zarr

    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    scales = [[{"type": "scale", "scale": [1, 0.5 * step, 0.5 * step]}] for step in (1, 2)]
    levels = [{"path": str(i), "coordinateTransformations": scale} for i, scale in enumerate(scales)]
    channels = [{"label": label, "color": "FFFFFF"} for label in ("red", "green", "blue")]
    image = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": levels}], "omero": {"channels": channels}}
    for version, stated in ((2, image), (3, {"ome": {"version": "0.5", **image}})):
        group = zarr.open_group(at / f"{version}.ome.zarr", mode="w", zarr_format=version)
        group.attrs.update(stated)
        for name, step in (("0", 1), ("1", 2)):
            pixels = noise[::step, ::step].transpose(2, 0, 1)
            shards = {"shards": (3, 128, 128)} if version == 3 and step == 1 else {}
            array = group.create_array(name, shape=pixels.shape, dtype="uint8", chunks=(1, 64, 64), **shards)
            array[...] = pixels


def _bombs(at: Path) -> None:
    """Small files that stand for many pixels."""
    import tifffile

    for side in (9_000, 14_000, 60_000):
        rows = zlib.compressobj(1)
        content = b"".join(rows.compress(b"\0" * (1 + side)) for _ in range(min(side, 9_000))) + rows.flush()
        head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        parts = ((b"IHDR", head), (b"IDAT", content), (b"IEND", b""))
        (at / f"{side}.png").write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts)
        )
    for side in (4096, 12_288):
        tile = zlib.compressobj(1)
        content = b"".join(tile.compress(b"\0" * (3 * side)) for _ in range(side)) + tile.flush()
        tifffile.imwrite(
            at / f"{side}.tif", iter([content] * 4), shape=(2 * side, 2 * side, 3), dtype="uint8", photometric="rgb",
            compression="deflate", tile=(side // 16 * 16, side // 16 * 16),
        )  # fmt: skip


# what is tried


@dataclass(frozen=True)
class Kind:
    """A kind of file: how it is mutated, and what it is given to."""

    weight: int
    check: Callable[[Path, Path], object]  # of the folder and the file in it
    mutators: tuple[Mutator, ...] = ()
    files: str = "*"
    names: bool = True  # whether an error has to name the file


def image(folder: Path, path: Path) -> None:
    from tcgn_hub.errors import TcgnError
    from tcgn_hub.images.readers import open_slide
    from tcgn_hub.prediction.patches import cut_image
    from tcgn_hub.weights.info import WeightsInfo

    error = None
    try:
        with open_slide(path) as slide:
            slide.overview(200)
            for level, _ in enumerate(slide.downsamples):
                slide.read(slide.size[0] // 2, slide.size[1] // 2, 64, 64, level=level)
                slide.read(-10, -10, 30, 30, level=level)
    except TcgnError as err:
        _fair(err, path)
        error = err
    cut_image(path, str(path), None, None, WeightsInfo("x", crop={"patch_um": 50}), force=True)
    if error:
        raise error


def dicom(folder: Path, path: Path) -> None:
    from tcgn_hub.images.finding import find_images

    find_images([folder])
    image(folder, path)


def zarr_folder(folder: Path, path: Path) -> None:
    image(folder, folder / path.relative_to(folder).parts[0])


def spots(folder: Path, path: Path) -> None:
    from tcgn_hub.data.spots import read_spots

    read_spots(path)


def sections(folder: Path, path: Path, *, of: str = "", **options: Any) -> None:
    from tcgn_hub.data.readers import read_sections

    if "expression" in options:
        options["expression"] = folder / options["expression"]
    read_sections(folder / of if of else path, **options)


def manifest(folder: Path, path: Path) -> None:
    from tcgn_hub.weights.manifest import read_manifest

    read_manifest(path)


def config(folder: Path, path: Path) -> None:
    from tcgn_hub.weights.model_dir import read_info

    read_info(folder, name=str(folder))


def weights(folder: Path, path: Path) -> None:
    import tcgn_hub

    tcgn_hub.load(path=path if path.suffix == ".onnx" else folder, device="cpu")


def parameters(folder: Path, path: Path) -> None:
    from tcgn_hub.weights.convert import read_parameters

    read_parameters(path)


def resume(folder: Path, path: Path) -> None:
    from tcgn_hub.training.checkpoints import load_checkpoint

    load_checkpoint(folder)


def run_of_slide(folder: Path, path: Path) -> None:
    from tcgn_hub.prediction.slides import _Store

    _Store(folder, {"slide": ["a", 1, 2], "weights": "x", "genes": None})


def measured(folder: Path, path: Path) -> None:
    from tcgn_hub.writing.evaluations import read_measured

    read_measured(path)


def panel(folder: Path, path: Path) -> None:
    from tcgn_hub.panels import load_panel

    load_panel(path)


def split(folder: Path, path: Path) -> None:
    from tcgn_hub.evaluation.splits import Split

    Split.from_json(path.read_text(encoding="utf-8", errors="replace"))


def metadata(folder: Path, path: Path) -> None:
    from tcgn_hub.cli.common import metadata_of

    metadata_of(argparse.Namespace(metadata=str(path)))


_TIFF = (tags, tags, tags, xml, xml, *ANY)
_TABLE = (cells, cells, cells, cells, *ANY)
_JSON = (document, document, document, document, *ANY)
_RAW = tuple(ANY)

KINDS: dict[str, Kind] = {
    "tiff": Kind(22, image, _TIFF),
    "ome": Kind(3, image, _TIFF),
    "svs": Kind(1, image, _TIFF),
    "png": Kind(7, image, (chunks, chunks, *_RAW)),
    "jpg": Kind(7, image, (segments, segments, *_RAW)),
    **{name: Kind(1, image, _RAW) for name in ("webp", "bmp", "gif", "jp2", "ico", "tga", "ppm")},
    "dicom": Kind(3, dicom, _RAW),
    "zarr": Kind(5, zarr_folder, _JSON, files="*.zarr/**/*", names=False),
    "bomb": Kind(0, image),
    "spots": Kind(8, spots, _TABLE),
    "parquet": Kind(1, spots, _RAW),
    "spots_h5ad": Kind(3, spots, _RAW, files="*.h5ad"),
    "h5ad": Kind(5, sections, _RAW, files="*.h5ad"),
    "visium_h5": Kind(3, partial(sections, of="outs"), _RAW, files="outs/**/*matrix.h5"),
    "visium_mtx": Kind(3, partial(sections, of="outs"), _TABLE, files="outs/filtered*/*"),
    "visium_json": Kind(1, partial(sections, of="outs"), _JSON, files="outs/spatial/*.json"),
    "visium_csv": Kind(2, partial(sections, of="outs"), _TABLE, files="outs/spatial/*.csv"),
    "her2st_counts": Kind(2, partial(sections, of="."), (zipped(cells), zipped(cells), *_RAW), files="ST-cnts/*"),
    "her2st_spots": Kind(2, partial(sections, of="."), _TABLE, files="ST-spotfiles/*"),
    "sheet": Kind(3, sections, _TABLE, files="sheet.csv"),
    "patches": Kind(2, partial(sections, expression="expression.csv"), _TABLE, files="patches.csv"),
    "expression": Kind(2, partial(sections, of="patches.csv", expression="expression.csv"), _TABLE, files="expression.csv"),
    "bulk": Kind(1, partial(sections, mpp=0.5), _TABLE, files="bulk.csv"),
    "manifest": Kind(5, manifest, _JSON),
    "config": Kind(5, config, _JSON, files="config.json"),
    "model": Kind(1, weights, (header, header, *_RAW), files="model.safetensors"),
    "model_config": Kind(1, weights, _JSON, files="config.json"),
    "safetensors": Kind(2, parameters, (header, header, *_RAW), files="model.safetensors"),
    "pickle": Kind(2, parameters, _RAW),
    "onnx": Kind(2, weights, _RAW),
    "resume": Kind(1, resume, _RAW),
    "run": Kind(2, run_of_slide, _JSON),
    "npz": Kind(1, measured, _RAW),
    "panel": Kind(2, panel, _TABLE),
    "split": Kind(2, split, _JSON, names=False),
    "metadata": Kind(1, metadata, _JSON),
}  # fmt: skip
_OF = {
    **dict.fromkeys(("visium_json", "visium_csv"), "visium_mtx"),
    **dict.fromkeys(("her2st_counts", "her2st_spots"), "her2st"),
    **{"expression": "patches", "model_config": "model", "safetensors": "model"},
}
COMMANDS = ("tiff", "png", "jpg", "spots", "spots_h5ad", "config", "model", "onnx", "manifest", "panel")


def _fair(err: BaseException, path: Path, *, names: bool = True) -> None:
    """Raise an AssertionError unless an error of ours is one clear sentence."""
    said = str(err)
    assert "\n" not in said.strip("\n"), f"more than one line: {said!r:.300}"
    assert len(said) < _LONGEST, f"{len(said)} characters: {said!r:.300}"
    assert said.isprintable(), f"not printable: {said!r:.300}"
    # a reader of folders may name the folder, and one of many files another of them
    named = (path.name, str(path.parent), path.stem, "Section ", "What is stated of ")
    assert not names or any(name in said for name in named), f"no file: {said!r:.300}"


def command_line(kind: str, path: Path, seeds: Path, rng: random.Random) -> None:
    """The same files through the command line, with weights that cost little."""
    from tcgn_hub.cli import main as umbrella

    patch, tiny = str(seeds / "png" / "exif.png"), str(seeds / "model")
    out = str(path.with_name("out.h5ad"))
    if kind in ("tiff", "png", "jpg"):
        argv = ["predict", str(path), "--weights", tiny, "--device", "cpu"]
        argv += rng.choice(([], ["--mpp", "0.5"], ["--mpp", "0.5", "-o", out, "--workers", "0"], ["--format", "json"]))
    elif kind in ("spots", "spots_h5ad"):
        argv = ["predict", patch, "--mpp", "0.5", "--weights", tiny, "-o", out, "--spots", str(path), "--workers", "0"]
    elif kind in ("config", "model"):
        argv = rng.choice((["predict", patch, "--weights", str(path.parent)], ["weights", "show", str(path.parent)]))
    elif kind == "onnx":
        argv = ["predict", patch, "--mpp", "1", "--weights", str(path)]
    elif kind == "panel":
        argv = ["predict", patch, "--mpp", "1", "--weights", tiny, "--genes", str(path)]
    else:
        argv = rng.choice((["weights", "list"], ["weights", "show", "tcgn_base.her2st"]))
        os.environ["TCGN_MANIFEST"] = str(path)
    said = io.StringIO()
    before = sys.stderr, sys.stdout
    sys.stderr, sys.stdout = said, io.StringIO()
    try:
        if kind == "manifest":
            from tcgn_hub.weights.manifest import load_manifest

            load_manifest.cache_clear()
        code: Any = umbrella.main(argv)
    except SystemExit as err:
        code = err.code
    finally:
        sys.stderr, sys.stdout = before
        os.environ.pop("TCGN_MANIFEST", None)
        shutil.rmtree(f"{out}.partial", ignore_errors=True)
        Path(out).unlink(missing_ok=True)
    text = said.getvalue()
    assert code in (0, 1, 2), f"exit code {code!r} of {argv}: {text!r:.300}"
    assert "Traceback" not in text, f"a traceback of {argv}: {text!r:.300}"
    assert "Warning:" not in text, f"a warning of {argv}: {text!r:.300}"
    assert code == 0 or text.strip(), f"exit code {code} without a word of {argv}"


@dataclass(frozen=True)
class Case:
    """One input; everything about it follows from the seed and the number."""

    seed: int
    number: int
    kinds: tuple[str, ...]
    command: bool = False

    def made(self, seeds: Path) -> tuple[str, Path, bytes, random.Random]:
        """Kind, path within the folder of the kind, and content."""
        rng = random.Random(f"{self.seed} {self.number} {self.command}")
        name = rng.choices(self.kinds, [max(KINDS[kind].weight, len(self.kinds) == 1) for kind in self.kinds])[0]
        kind, root = KINDS[name], seeds / _OF.get(name, name)
        files = sorted(path for path in root.glob(kind.files) if path.is_file())
        if not kind.mutators:
            path = files[self.number % len(files)]
            return name, path.relative_to(root), path.read_bytes(), rng
        path = rng.choice(files)
        data = path.read_bytes()
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            mutate = rng.choice(kind.mutators)
            try:
                data = mutate(data, rng)
            except (ValueError, IndexError, OSError, EOFError, zlib.error, UnicodeError, struct.error, RecursionError):
                data = spliced(data, rng)
        return name, path.relative_to(root), data, rng


def tried(name: str, path: Path, folder: Path, seeds: Path, rng: random.Random, *, command: bool) -> str:
    """'ok', the type of a fair error, or what was found, after 'FOUND '."""
    from tcgn_hub.errors import TcgnError

    kind = KINDS[name]
    try:
        if command:
            command_line(name, path, seeds, rng)
        else:
            kind.check(folder, path)
    except TcgnError as err:
        try:
            _fair(err, path, names=kind.names)
        except AssertionError as unfair:
            return f"FOUND {type(err).__name__}: {unfair}"
        return type(err).__name__
    except AssertionError as err:
        where = traceback.extract_tb(err.__traceback__)[-1]
        return f"FOUND {err or where}"
    except BaseException as err:
        last = [f for f in traceback.extract_tb(err.__traceback__) if "tcgn_hub" in f.filename][-1:]
        at = f"{Path(last[0].filename).name}:{last[0].lineno}" if last else "?"
        return f"FOUND {type(err).__name__} at {at}: {err!s:.300}"
    return "ok"


def work(cases: list[Case], seeds: Path, work_in: Path, out: Connection) -> None:
    """Try cases, telling which is begun and how it ended; ends by itself, without what the parent would do at exit."""
    work_in.mkdir(parents=True, exist_ok=True)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _ADDRESSES, size + _ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    said = work_in / "stderr"
    handle = os.open(said, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 2)
    os.dup2(handle, 1)
    logging.getLogger("tcgn_hub").addHandler(logging.NullHandler())
    for case in cases:
        name, inside, data, rng = case.made(seeds)
        root = work_in / name
        if not root.exists():
            shutil.copytree(seeds / _OF.get(name, name), root)
        path = root / inside
        before = path.read_bytes()
        path.write_bytes(data)
        out.send(("begun", case, name, str(inside)))
        Path("/proc/self/clear_refs").write_text("5")
        start = time.monotonic()
        result = tried(name, path, root, seeds, rng, command=case.command)
        seconds, peak = time.monotonic() - start, _peak()
        sys.stderr.flush()
        text = os.pread(handle, 20_000, 0)
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        if not result.startswith("FOUND"):
            if peak > _MOST_BYTES:
                result = f"FOUND {peak >> 20} MiB"
            elif b"Traceback" in text:
                result = f"FOUND on stderr: {text.decode('utf-8', 'replace')!r:.500}"
        path.write_bytes(before)
        out.send(("ended", case, name, result, seconds, peak))
    out.close()
    os._exit(0)


def _peak() -> int:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10  # type: ignore[index]


class Tally:
    """What came of all cases."""

    def __init__(self, seeds: Path, findings: Path) -> None:
        self.seeds, self.findings = seeds, findings
        self.results: Counter[tuple[str, str]] = Counter()
        self.found: dict[str, list[str]] = {}
        self.peak, self.slowest, self.cases = (0, ""), (0.0, ""), 0

    def ended(self, case: Case, name: str, result: str, seconds: float = 0, peak: int = 0) -> None:
        self.cases += 1
        label = f"{name} {case.seed}:{case.number}{' cli' if case.command else ''}"
        self.peak, self.slowest = max(self.peak, (peak, label)), max(self.slowest, (seconds, label))
        if not result.startswith("FOUND"):
            self.results[name, result] += 1
            return
        self.results[name, "FOUND"] += 1
        sign = re.sub(r"\d+|0x[0-9a-f]+", "#", result.removeprefix("FOUND "))
        sign = f"{name}: {re.sub(r'/[^ ]+', '/', sign)[:110]}"
        known = self.found.setdefault(sign, [])
        known.append(f"{label} {result}")
        if len(known) <= 3:
            _, inside, data, _ = case.made(self.seeds)
            to = self.findings / f"{name}-{case.seed}-{case.number}{'-cli' if case.command else ''}" / inside
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(data)
            (self.findings / "findings.txt").open("a").write(f"{label}: {result!r}\n")


def fuzz(cases: list[Case], seeds: Path, findings: Path, *, workers: int = 2, seconds: float = 1e9) -> Tally:
    """Try cases in forked processes under a watchdog, for at most so many seconds."""
    tally = Tally(seeds, findings)
    context = multiprocessing.get_context("fork")
    waiting = [cases[i : i + _BATCH] for i in range(0, len(cases), _BATCH)][::-1]
    running: dict[Connection, tuple[Any, list[Case], list[Any]]] = {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        number = 0
        while (waiting and time.monotonic() - start < seconds) or running:
            while waiting and len(running) < workers and time.monotonic() - start < seconds:
                batch, number = waiting.pop(), number + 1
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(target=work, args=(batch, seeds, Path(scratch) / str(number), writer))
                process.start()
                writer.close()
                running[reader] = process, batch, [None, time.monotonic(), number]
            for connection in wait(list(running), timeout=1):
                process, batch, state = running[connection]  # type: ignore[index]
                try:
                    kind, case, *rest = connection.recv()  # type: ignore[union-attr]
                except EOFError:
                    process.join()
                    del running[connection]  # type: ignore[arg-type]
                    shutil.rmtree(Path(scratch) / str(state[2]), ignore_errors=True)
                    if state[0] is not None:
                        case, name = state[0]
                        why = "killed" if process.exitcode == -signal.SIGKILL else "dead"
                        tally.ended(case, name, f"FOUND the process is {why} ({process.exitcode}) {state[3:] or ''}")
                        waiting.append(batch[batch.index(case) + 1 :])
                        if not waiting[-1]:
                            waiting.pop()
                    continue
                state[1] = time.monotonic()
                state[0] = (case, rest[0]) if kind == "begun" else None
                if kind == "ended":
                    tally.ended(case, *rest)
            for process, _, state in running.values():
                if state[0] and time.monotonic() - state[1] > _HANG_S and len(state) == 3:
                    state.append(f"after {_HANG_S} s")
                    process.kill()
    return tally


def heavy() -> None:
    """Import what cases need, once, so that each costs a fork."""
    import anndata  # noqa: F401
    import h5py  # noqa: F401
    import imagecodecs  # noqa: F401
    import onnxruntime  # noqa: F401
    import openslide  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import pydicom  # noqa: F401
    import scipy.io
    import scipy.sparse  # noqa: F401
    import tifffile  # noqa: F401
    import torch
    import zarr  # noqa: F401

    import tcgn_hub
    import tcgn_hub.cli.predict
    import tcgn_hub.cli.weights
    import tcgn_hub.data.readers
    import tcgn_hub.evaluation.splits
    import tcgn_hub.models.loading
    import tcgn_hub.prediction.slides
    import tcgn_hub.training.checkpoints
    import tcgn_hub.writing.evaluations  # noqa: F401

    torch.set_num_threads(1)


def prepared(folder: Path) -> Path:
    """The folder of seeds, written by another process, for one that has computed with PyTorch cannot be forked."""
    if not folder.exists():
        process = multiprocessing.get_context("fork").Process(target=write_seeds, args=(folder,))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit("The seeds could not be written.")
    return folder


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--count", type=int, default=20_000, help="cases of the functions")
    made.add_argument("--commands", type=int, default=400, help="cases of the command line")
    made.add_argument("--seconds", type=float, default=3600, help="no case begins after so many")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--kind", nargs="+", choices=KINDS, help="kinds of files; all if not given")
    made.add_argument("--workers", type=int, default=2)
    made.add_argument("--findings", type=Path, default=Path("findings"), help="where files of findings are kept")
    made.add_argument("--seeds", type=Path, help="where the sound files are kept; nowhere if not given")
    made.add_argument("--only", help="one case: SEED:NUMBER, with :cli for one of the command line")
    return made


def all_cases(seed: int, count: int, commands: int, kinds: list[str] | None) -> list[Case]:
    bombs = [Case(seed, i, ("bomb",)) for i in range(5)] if not kinds and count >= 1000 else []
    chosen = tuple(kinds or KINDS)
    cli = tuple(kind for kind in COMMANDS if kind in chosen)
    cases = [Case(seed, i, chosen) for i in range(count - len(bombs))]
    return bombs + cases + [Case(seed, i, cli, command=True) for i in range(commands if cli else 0)]


def main() -> int:
    args = parser().parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HF_HOME"] = scratch
        os.environ["HF_HUB_OFFLINE"] = "1"
        seeds = prepared(args.seeds or Path(scratch) / "seeds")
        heavy()
        cases = all_cases(args.seed, args.count, args.commands, args.kind)
        if args.only:
            _, number, *cli = args.only.split(":")
            cases = [case for case in cases if case.number == int(number) and case.command == bool(cli)]
        tally = fuzz(cases, seeds, args.findings, workers=args.workers, seconds=args.seconds)
    kinds = sorted({kind for kind, _ in tally.results})
    for kind in kinds:
        of = {result: n for (name, result), n in sorted(tally.results.items()) if name == kind}
        print(f"{kind:14} {sum(of.values()):6}  " + ", ".join(f"{n} {result}" for result, n in of.items()))
    for sign, cases_of in sorted(tally.found.items(), key=lambda item: -len(item[1])):
        print(f"\n{len(cases_of)} x {sign}\n    {cases_of[0][:600]}")
    print(
        f"\n{tally.cases} cases in {time.monotonic() - start:.0f} s, {sum(map(len, tally.found.values()))} findings of"
        f" {len(tally.found)} kinds; most memory {tally.peak[0] >> 20} MiB ({tally.peak[1]}), slowest"
        f" {tally.slowest[0]:.1f} s ({tally.slowest[1]})"
    )
    return 1 if tally.found else 0


if __name__ == "__main__":
    sys.exit(main())
