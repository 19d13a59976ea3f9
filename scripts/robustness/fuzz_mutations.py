"""Mutations of files and words for fuzz.py: each a function of a seeded generator, so that a case comes again.

Bytes are flipped, cut, repeated and spliced; texts get other encodings, palettes another order; PNG chunks and JPEG
segments get right sums again, as a decoder would look no further otherwise; JSON and checkpoints are changed value by
value, so that they get past the parser.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

#: What a hostile file tries to run; the fuzzer looks whether the file is there afterwards.
CANARY = "canary_was_here"

_LONG = "x" * 5000
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 255, 256, 2**31, 2**63, -(2**40), 10**30, 0.5, -0.0, 1e-300, 1e308),
    *(float("nan"), float("inf"), "", "x", " ", "\0", "\n", "ä ö", "\ud7ff", "../../x", "/", "~", "null", "1e9", _LONG),
    *("${oc.env:HOME}", "${.}", "${nope}", "${..fold}", "${oc.create:{_target_:os.system}}", "${", "%s%n", "[]", "{}"),
    *([], {}, [[]], [0], [-1, -1], [1, 2, 3], {"": 0}, {"_target_": "os.system", "command": f"touch {CANARY}"}),
)
_ODD_WORDS = (
    *("", "=", "a", "a=", "=a", "a=b", "+a=b", "++a.b=c", "~fold", "~dataset", "-h=1", "fold", "fold=", "fold==1"),
    *("fold=[", "fold={", "fold='", "fold=(1)", "fold=1,2", "fold=${fold}", "fold=${oc.env:HOME}", "ckpt='a=b'", "ä=ö"),
    *("+model._target_=os.system", f"+x={{_target_:os.system,command:touch {CANARY}}}", "dataset=../../etc/passwd"),
    *("backbone=/etc/passwd", "dataset@x=coco", "+dataset/x=y", "ablation=null", "model=baseline", "dataset=folder"),
    *("dataset._target_=os.system", "augment._target_=builtins.eval", "optim=null", "trainer=cpu,gpu", "\\"),
)


class RefusedError(Exception):
    """A script or an entry point has refused an input with one line."""


class Payload:
    """Runs a command where it is unpickled; so it must not be."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        """What a hostile file holds."""
        import os

        return os.system, (f"touch {CANARY}",)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, splice or overwrite some bytes."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 4, 8, 64, 1024))
        kind = rng.randrange(7)
        if kind == 0:
            del content[place:]
        elif kind == 1:
            del content[place : place + length]
        elif kind == 2:
            content[place:place] = rng.randbytes(length)
        elif kind == 3:
            content[place : place + length] = content[place : place + length] * 3
        elif kind == 4:
            content[place : place + 4] = struct.pack(">I", rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 65535, 40000)))
        else:
            for spot in range(place, min(place + length, len(content))):
                content[spot] = rng.randrange(256) if kind == 5 else content[spot] ^ (1 << rng.randrange(8))
    return bytes(content)


def mutate_png(data: bytes, rng: random.Random) -> bytes:
    """Change, drop, repeat or move a chunk, its sum made right again; or any byte."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    chunks = list(_png_chunks(data))
    place = rng.randrange(len(chunks))
    name, body = chunks[place]
    kind = rng.randrange(7)
    palette = next((number for number, chunk in enumerate(chunks) if chunk[0] == b"PLTE"), None)
    if kind > 4 and palette is not None:
        chunks[palette] = (b"PLTE", _other_palette(chunks[palette][1], rng))
    elif kind == 0:
        del chunks[place]
    elif kind == 1:
        chunks.insert(rng.randrange(len(chunks) + 1), (name, body))
    elif kind == 2:
        chunks.insert(rng.randrange(len(chunks)), (rng.choice((b"tRNS", b"eXIf", b"acTL", b"iCCP")), rng.randbytes(30)))
    else:
        chunks[place] = (name, mutate_bytes(body, rng) if body else rng.randbytes(4))
    parts = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks]
    return data[:8] + b"".join(parts)


def _other_palette(body: bytes, rng: random.Random) -> bytes:
    """The entries in another order, fewer of them, or others."""
    entries = [body[place : place + 3] for place in range(0, len(body), 3)]
    kind = rng.randrange(4)
    if kind == 0:
        rng.shuffle(entries)
    elif kind == 1:
        entries = entries[: rng.randrange(1, 8)]
    elif kind == 2:
        entries = [bytes([rng.choice((0, 0, 60, 220)), 0, 0]) for _ in entries]
    else:
        entries[rng.randrange(min(8, len(entries)))] = rng.choice((b"\0\0\0", b"\xff\xff\xff", rng.randbytes(3)))
    return b"".join(entries)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += 12 + length


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, drop or repeat some values; or any byte."""
    if rng.random() < 0.2:
        return mutate_bytes(data, rng)
    if rng.random() < 0.02:
        return b"[" * 100_000  # deeper than Python's stack
    tree = mutate_tree(json.loads(data), rng)
    return encode(json.dumps(tree, default=str, ensure_ascii=rng.random() < 0.9), rng)


def encode(text: str, rng: random.Random) -> bytes:
    """A text in one of the encodings that editors and exporters write; mostly UTF-8."""
    encoding = "utf-8" if rng.random() < 0.9 else rng.choice(("utf-8-sig", "utf-16", "latin-1", "cp1252", "shift-jis"))
    return text.encode(encoding, "surrogatepass" if encoding == "utf-8" else "replace")


def mutate_coco(data: bytes, rng: random.Random) -> bytes:
    """Give entries of an annotation file ids of others, mark crowds, take segmentations away; or change any value."""
    if rng.random() < 0.6:
        return mutate_json(data, rng)
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        annotation = rng.choice(content["annotations"])
        kind = rng.randrange(7)
        if kind < 2:
            entries = content[rng.choice(("images", "images", "annotations", "categories"))]
            rng.choice(entries)["id"] = rng.choice(entries)["id"]
        elif kind == 2:
            annotation["iscrowd"] = rng.choice((0, 1))
        elif kind == 3:
            other = rng.choice(content["annotations"])["segmentation"]
            nothing: tuple[Any, ...] = ([], [[]], None, [[1, 2, 9, 8]], {}, {"size": [1, 1], "counts": ""})
            annotation["segmentation"] = rng.choice((*nothing, other))
        elif kind == 4:
            entry = rng.choice(content[rng.choice(("images", "annotations", "categories"))])
            key = rng.choice([key for key in entry if key.endswith("id")])
            entry[key] = rng.choice((str(entry[key]), float(entry[key]), f"0{entry[key]}"))
        elif kind == 5:
            annotation["iscrowd"] = rng.choice(("0", "1", True, False, None))
        else:
            category = rng.choice(content["categories"])["id"]
            for one in content["annotations"]:
                one["iscrowd"] = 1 if one["category_id"] == category else one["iscrowd"]
    return encode(json.dumps(content), rng)


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """Replace, drop or repeat some values of nested dicts and lists; the tree itself is changed."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        places = list(_places(tree))
        if not places:
            return copy.deepcopy(rng.choice(ODD_VALUES))
        holder, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif kind == 2 and isinstance(holder, dict):
            holder[str(rng.choice(ODD_VALUES))[:50]] = copy.deepcopy(holder[key])
        elif kind == 3:
            other, other_key = rng.choice(places)
            holder[key] = copy.deepcopy(other[other_key])  # a copy, as the tree must not bite its tail
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return tree


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index)."""
    stack = [node]
    while stack:
        holder = stack.pop()
        items = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
        for key, value in items:
            yield holder, key
            if isinstance(value, dict | list):
                stack.append(value)


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """Repeat, drop, swap or replace lines of a list; or any byte."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    if rng.random() < 0.2:
        return encode(data.decode() + "größe\r\n", rng)
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        lines.insert(rng.randrange(len(lines)), lines[place])
    elif kind == 1:
        del lines[place]
    else:
        lines[place] = str(rng.choice(ODD_VALUES)).encode("utf-8", "replace")
    return b"\n".join(lines)


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """Change a member of a zip archive (a checkpoint, an .npz), its sum made right again; or any byte.

    Sometimes the pickle of a checkpoint is replaced by one that runs a command.
    """
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(output, "w") as changed:
        names = archive.namelist()
        small = [name for name in names if name.endswith((".pkl", ".npy", "version", "byteorder"))]
        chosen = rng.choice(small if small and rng.random() < 0.7 else names)
        for name in names:
            body = archive.read(name)
            if name == chosen:
                if name.endswith(".pkl") and rng.random() < 0.2:
                    body = pickle.dumps(rng.choice((Payload(), {"state_dict": Payload()}, [Payload()])), protocol=2)
                elif rng.random() < 0.1:
                    continue
                else:
                    body = mutate_bytes(body, rng)
            changed.writestr(name, body)
    return output.getvalue()


def mutate_words(keys: list[str], rng: random.Random) -> list[str]:
    """A command line: odd words, and odd values of known keys."""
    words = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.25:
            words.append(rng.choice(_ODD_WORDS))
            continue
        value = rng.choice(ODD_VALUES)
        text = json.dumps(value) if isinstance(value, list | dict) and rng.random() < 0.5 else str(value)
        words.append(f"{rng.choice(('', '', '', '+', '++', '~'))}{rng.choice(keys)}={text[:300]}")
    return words
