"""Folders of images and masks: what belongs together, what the masks say, what is wrong with them.

All files are read once before training. So a mistake in one of them is a line at the start, not a
traceback after an hour, and the frequencies of the classes are those of all training images.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunpool.apps.command import UsageError
from jaxunpool.training.metrics import IGNORED

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
# What the name of a mask may have after the name of its image; CamVid's is the first.
ENDINGS = ("_L", "_mask", "_masks", "_label", "_labels", "_gt", "_seg")
PALETTES = ("label_colors.txt", "label_colours.txt", "class_dict.csv")
VOID = ("void", "unlabelled", "unlabeled", "ignore")  # names that palettes have for no class
MOST_FOUND = 64  # values in masks that are taken for classes when nobody says how many there are
VALIDATION = "0.2"  # of the images
FILL = 128  # beyond the border of an image that is smaller than a crop

# Paul Tol's "muted", told apart by colour-blind eyes.
MUTED = (
    (0x33, 0x22, 0x88),
    (0x88, 0xCC, 0xEE),
    (0x44, 0xAA, 0x99),
    (0x11, 0x77, 0x33),
    (0x99, 0x99, 0x33),
    (0xDD, 0xCC, 0x77),
    (0xCC, 0x66, 0x77),
    (0x88, 0x22, 0x55),
    (0xAA, 0x44, 0x99),
    (0x6F, 0x6F, 0x6F),
)

Colour = tuple[int, int, int]


class Pair(NamedTuple):
    """An image and its mask."""

    image: pathlib.Path
    mask: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Classes:
    """What the pixels of masks mean.

    Attributes:
        names: of the classes.
        colours: of the classes, in masks and figures to be written.
        codes: of every value that a mask may hold, its class, or `IGNORED`. A colour is the value
            `65536 * red + 256 * green + blue`.
        coloured: whether values are colours.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    codes: dict[int, int]
    coloured: bool

    def of(self, values: np.ndarray) -> np.ndarray:
        """The class of each value, uint8; all of them are known."""
        keys = np.array(sorted(self.codes))
        found = np.array([self.codes[key] for key in keys], np.uint8)
        return found[np.searchsorted(keys, values)]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Pairs that were read once without a mistake.

    Attributes:
        training: pairs to train on.
        validation: pairs to score on.
        classes: what masks mean.
        counts: `[len(training), classes]`, pixels of each class in each training mask.
        digest: SHA-256 of all files, of what their masks mean, and of the split.
        notes: what a user should know of it, a line each.
    """

    training: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    classes: Classes
    counts: np.ndarray
    digest: str
    notes: tuple[str, ...]

    def load(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """The image, `[height, width, 3]`, and the classes of its pixels, both uint8."""
        values = read_mask(pair.mask, self.classes.coloured)
        return read_image(pair.image), self.classes.of(values)


def prepare(asked: argparse.Namespace, seed: int) -> Dataset:
    """Find, pair, read and split what the command line names.

    Args:
        asked: `images`, `masks`, `classes`, `palette`, `ignore` and `validation` of the command.
        seed: of the split.

    Raises:
        UsageError: a file is missing, broken, of another size than its partner or with a value
            that no class has. The message names it.
    """
    pairs, notes = paired(asked.images, asked.masks)
    training, validation = split(pairs, asked.validation or VALIDATION, seed)
    palette = find_palette(asked)
    first = _opened(pairs[0].mask)
    coloured = palette is not None and first.mode not in ("1", "L", "I", "I;16")
    seen = parallel(lambda pair: _inspect(pair, coloured), pairs)
    if palette is not None:
        classes, about = _classes_of_palette(asked, palette, coloured)
    else:
        classes, about = _classes_of_values(asked, seen, first)
    for pair, each in zip(pairs, seen):
        _check_values(pair.mask, each.counts, classes, palette)
    by_pair = dict(zip(pairs, seen))
    counts = np.zeros((len(training), len(classes.names)), np.int64)
    for row, pair in zip(counts, training):
        for value, count in by_pair[pair].counts.items():
            if classes.codes[value] != IGNORED:
                row[classes.codes[value]] += count
    if not counts.any():
        raise UsageError(f"{asked.masks}: no pixel of the training masks has a class")
    absent = [name for name, total in zip(classes.names, counts.sum(0)) if not total]
    if absent:
        notes.append(f"no training mask has {', '.join(absent)}")
    heights, widths = zip(*(each.shape for each in seen))
    notes.insert(
        0,
        f"{len(pairs)} images of {_span(heights)} x {_span(widths)} pixels:"
        f" {len(training)} to train on, {len(validation)} to validate",
    )
    notes.insert(1, f"{len(classes.names)} classes ({about}): {', '.join(classes.names)}")
    said = [
        [sorted(classes.codes.items()), coloured],
        *([by_pair[pair].digest for pair in part] for part in (training, validation)),
    ]
    digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    return Dataset(training, validation, classes, counts, digest, tuple(notes))


def parallel(function: Any, items: Iterable[Any]) -> list[Any]:
    """Each item's result, in order, from as many threads as there are processors."""
    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


# Finding


def paired(images: pathlib.Path, masks: pathlib.Path) -> tuple[list[Pair], list[str]]:
    """Every image with the mask of its name, in the order of names, and notes.

    A mask is named as its image, or so with one of `ENDINGS` behind, in the same subfolder; either
    may be a PNG, JPEG or TIFF file.
    """
    found, of_masks = (_pictures(folder) for folder in (images, masks))
    together = images.resolve() == masks.resolve()
    by_name: dict[pathlib.PurePath, pathlib.Path] = {}
    for path in of_masks:
        name = _name_of_mask(path.relative_to(masks))
        if together and name == path.relative_to(masks).with_suffix(""):
            continue  # this is an image
        if name in by_name:
            raise UsageError(f"{path}: {by_name[name].name} is a mask of the same image")
        by_name[name] = path
    if together:
        taken = {path.relative_to(masks) for path in by_name.values()}
        found = [path for path in found if path.relative_to(images) not in taken]
    pairs: dict[pathlib.PurePath, Pair] = {}
    for path in found:
        name = path.relative_to(images).with_suffix("")
        if name in pairs:
            raise UsageError(f"{path}: {pairs[name].image.name} has the same name")
        if name not in by_name:
            raise UsageError(
                f"{path}: its mask is missing: {masks} has no {name}{'|'.join(('', *ENDINGS))}"
                " as PNG, JPEG or TIFF"
            )
        pairs[name] = Pair(path, by_name[name])
    unused = len(by_name) - len(pairs)
    return list(pairs.values()), [
        f"not used, without an image: {unused} of the masks"
    ] if unused else []


def _pictures(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: {'is not a folder' if folder.exists() else 'does not exist'}")
    found = (
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    pictures = list(found)
    if not pictures:
        raise UsageError(f"{folder}: holds no PNG, JPEG or TIFF file")
    return pictures


def _name_of_mask(path: pathlib.PurePath) -> pathlib.PurePath:
    """The name that its image has, without a suffix."""
    for ending in ENDINGS:
        if path.stem.endswith(ending):
            return path.with_name(path.stem.removesuffix(ending) or path.stem)
    return path.with_suffix("")


def split(
    pairs: Sequence[Pair], validation: str, seed: int
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Pairs to train on and to validate with: a share drawn by the seed, or those of a list."""
    if len(pairs) < 2:
        raise UsageError(
            f"{pairs[0].image}: is the only image: one to train on and one to validate are needed"
        )
    try:
        share = float(validation)
    except ValueError:
        chosen = _listed(pairs, pathlib.Path(validation))
    else:
        if not 0 < share < 1:
            raise UsageError(f"argument --validation: expected between 0 and 1, got {validation}")
        count = min(max(round(share * len(pairs)), 1), len(pairs) - 1)
        chosen = set(np.random.default_rng(seed).permutation(len(pairs))[:count].tolist())
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    for at, pair in enumerate(pairs):
        parts[at in chosen].append(pair)
    return tuple(parts[0]), tuple(parts[1])


def _listed(pairs: Sequence[Pair], path: pathlib.Path) -> set[int]:
    """Which of the pairs a file names, by the names of their images, a line each."""
    names: dict[str, int] = {}
    for at, pair in enumerate(pairs):
        for name in (str(pair.image), pair.image.name, pair.image.stem):
            names[name] = at
    chosen = set()
    for number, line in enumerate(_lines(path, "argument --validation"), 1):
        name = line.strip()
        known = [each for each in (name, pathlib.PurePath(name).name) if each in names]
        if name and not known:
            raise UsageError(f"{path}, line {number}: there is no image {name}")
        if name:
            chosen.add(names[known[0]])
    if not 0 < len(chosen) < len(pairs):
        raise UsageError(
            f"{path}: lists {len(chosen)} of {len(pairs)} images: expected some, and others to"
            " train on"
        )
    return chosen


def _lines(path: pathlib.Path, argument: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not a text file") from None
    except OSError as error:
        raise UsageError(f"{argument}: {path}: {error.strerror}") from None


# What masks mean


class Palette(NamedTuple):
    """The colours of a palette file, by the name of their class."""

    path: pathlib.Path
    colours: dict[str, list[Colour]]


def find_palette(asked: argparse.Namespace) -> Palette | None:
    """The palette that is named, or the one that lies where data sets have it."""
    if asked.palette is not None:
        return read_palette(asked.palette)
    folders = dict.fromkeys(
        each for folder in (asked.masks, asked.images) for each in (folder, folder.resolve().parent)
    )
    for path in (folder / name for folder in folders for name in PALETTES):
        if path.is_file():
            return read_palette(path)
    return None


def read_palette(path: pathlib.Path) -> Palette:
    """A text file with a line for each colour: three numbers and a name, in either order.

    They are apart by blanks, tabs or commas, as in CamVid's `label_colors.txt`. Colours of one
    name are one class. Blank lines, those that begin with `#`, and a heading are left out.
    """
    colours: dict[str, list[Colour]] = collections.defaultdict(list)
    owners: dict[Colour, str] = {}
    for number, line in enumerate(_lines(path, "argument --palette"), 1):
        words = line.replace(",", " ").replace("\t", " ").split()
        if not words or words[0].startswith("#"):
            continue
        front = words[0].isdigit()
        numbers, name = (words[:3], words[3:]) if front else (words[-3:], words[:-3])
        if number == 1 and not any(word.isdigit() for word in words):
            continue
        if len(numbers) < 3 or not all(n.isdigit() and int(n) < 256 for n in numbers) or not name:
            raise UsageError(
                f"{path}, line {number}: expected red, green, blue (0 to 255) and a name,"
                f" got {line.strip()!r}"
            )
        colour = (int(numbers[0]), int(numbers[1]), int(numbers[2]))
        if owners.setdefault(colour, " ".join(name)) != " ".join(name):
            raise UsageError(f"{path}, line {number}: {owners[colour]} has the same colour")
        colours[" ".join(name)].append(colour)
    if not colours:
        raise UsageError(f"{path}: holds no colour")
    return Palette(path, dict(colours))


def _classes_of_palette(
    asked: argparse.Namespace, palette: Palette, coloured: bool
) -> tuple[Classes, str]:
    """Classes are the palette's names but what is to be ignored, or those that were asked for."""
    known = {name.casefold(): name for name in palette.colours}
    if asked.ignore is None:
        ignored = {known[name] for name in VOID if name in known}
    elif asked.ignore.casefold() not in known:
        raise UsageError(f"argument --ignore: {palette.path} has no {asked.ignore}")
    else:
        ignored = {known[asked.ignore.casefold()]}
    names = [name for name in palette.colours if name not in ignored]
    wanted = class_names(asked.classes)
    if isinstance(wanted, int) and wanted != len(names):
        raise UsageError(f"argument --classes: {palette.path} has {len(names)}, got {wanted}")
    if isinstance(wanted, list):
        for name in wanted:
            if name.casefold() not in known:
                raise UsageError(f"argument --classes: {palette.path} has no {name}")
        names = [known[name.casefold()] for name in wanted]
    codes = {}
    for at, (name, colours) in enumerate(palette.colours.items()):
        number = names.index(name) if name in names else IGNORED
        for red, green, blue in colours:
            codes[65536 * red + 256 * green + blue if coloured else at] = number
    if not coloured:
        codes.setdefault(IGNORED, IGNORED)
    others = [name for name in palette.colours if name not in names]
    about = f"{palette.path}; ignored: {', '.join(others) or 'none'}"
    shown = tuple(palette.colours[name][0] for name in names)
    return _checked(asked.masks, Classes(tuple(names), shown, codes, coloured)), about


def _classes_of_values(
    asked: argparse.Namespace, seen: Sequence[_Seen], first: Any
) -> tuple[Classes, str]:
    """Classes are the values 0, 1, ... that were asked for, or those that masks have."""
    values = sorted(set().union(*(each.counts for each in seen)))
    ignore = IGNORED
    if asked.ignore is not None:
        if not asked.ignore.isdigit():
            raise UsageError(f"argument --ignore: expected a value in masks, got {asked.ignore!r}")
        ignore = int(asked.ignore)
    wanted = class_names(asked.classes)
    count = len(wanted) if isinstance(wanted, list) else wanted
    # The usual mask of one kind of thing is black and white.
    if values == [0, 255] and asked.ignore is None and count in (None, 2):
        of_classes, about = values, "0 is black, 1 is white"
        count, ignore = 2, -1
    elif count is None:
        of_classes = [value for value in values if value != ignore]
        about = "the values that masks have"
        if len(of_classes) > MOST_FOUND:
            raise UsageError(
                f"{asked.masks}: masks have {len(of_classes)} values: say how many classes there"
                " are with --classes"
            )
        wanted = [str(value) for value in of_classes]
    else:
        of_classes, about = list(range(count)), f"values 0 to {count - 1}"
    names = wanted if isinstance(wanted, list) else [str(n) for n in range(len(of_classes))]
    codes = {value: at for at, value in enumerate(of_classes)}
    if ignore >= 0:
        codes[ignore] = IGNORED
        about += f"; ignored: {ignore}"
        if ignore in of_classes and asked.ignore is None:
            raise UsageError("argument --classes: expected at most 255")
    classes = Classes(tuple(names), _colours(of_classes, first), codes, False)
    return _checked(asked.masks, classes), about


def class_names(classes: Sequence[str] | None) -> int | list[str] | None:
    """How many classes `--classes` asks for, or their names."""
    if classes is None:
        return None
    words = [word.strip() for text in classes for word in text.split(",") if word.strip()]
    if len(words) == 1 and words[0].isdigit():
        return int(words[0])
    twice = [word for word, times in collections.Counter(words).items() if times > 1]
    if twice:
        raise UsageError(f"argument --classes: {twice[0]} is named twice")
    return words


def _checked(masks: pathlib.Path, classes: Classes) -> Classes:
    if not 2 <= len(classes.names) <= IGNORED:
        got = ", ".join(classes.names[:5]) or "none"
        raise UsageError(
            f"{masks}: expected 2 to {IGNORED} classes, got {len(classes.names)} ({got})"
        )
    return classes


def _colours(values: Sequence[int], first: Any) -> tuple[Colour, ...]:
    """Of the first mask, if it has colours of its own; else ones that can be told apart."""
    if first.mode == "P":
        entries = np.array(first.convert("P").getpalette("RGB")).reshape(-1, 3)
        if max(values) < len(entries) and len(np.unique(entries[values], axis=0)) == len(values):
            return tuple((int(r), int(g), int(b)) for r, g, b in entries[values])
    if len(values) <= len(MUTED):
        return MUTED[: len(values)]
    return tuple(_voc(number) for number in range(len(values)))


def _voc(number: int) -> Colour:
    """The colour that PASCAL VOC gives a class: its bits, from the left, in turns of channels."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return (channels[0], channels[1], channels[2])


# Reading


class _Seen(NamedTuple):
    shape: tuple[int, int]
    counts: dict[int, int]
    digest: str


def _inspect(pair: Pair, coloured: bool) -> _Seen:
    """Read a pair as training will, and take down what there is to know of it."""
    image, values = read_image(pair.image), read_mask(pair.mask, coloured)
    if image.shape[:2] != values.shape:
        sizes = ("x".join(map(str, each)) for each in (values.shape, image.shape[:2]))
        raise UsageError(
            f"{pair.mask}: has {next(sizes)} pixels (height x width), its image {pair.image.name}"
            f" has {next(sizes)}"
        )
    found, counts = np.unique(values, return_counts=True)
    digest = hashlib.sha256(image.tobytes() + values.tobytes()).hexdigest()
    return _Seen(values.shape, dict(zip(found.tolist(), counts.tolist())), digest)


def _check_values(
    path: pathlib.Path, counts: dict[int, int], classes: Classes, palette: Palette | None
) -> None:
    unknown = [value for value in counts if value not in classes.codes]
    if not unknown:
        return
    value = max(unknown, key=lambda each: counts[each])
    pixels = f"in {counts[value]} pixels" + (
        f" (and {len(unknown) - 1} others)" if len(unknown) > 1 else ""
    )
    hint = ""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        hint = "; JPEG changes values, PNG keeps them"
    if classes.coloured and palette is not None:
        colour = f"{value >> 16} {value >> 8 & 255} {value & 255}"
        raise UsageError(
            f"{path}: has the colour {colour} {pixels}, unknown to {palette.path}{hint}"
        )
    known = sorted(classes.codes)
    expected = ", ".join(map(str, known[:20])) + (", ..." if len(known) > 20 else "")
    raise UsageError(f"{path}: has the value {value} {pixels}, expected {expected}{hint}")


def read_image(path: pathlib.Path) -> np.ndarray:
    """`[height, width, 3]`, uint8, upright."""
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(_opened(path))
    if picture.mode.startswith("I;16"):  # Pillow would cut off what is above 255
        grey = (np.asarray(picture) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, -1)
    return np.asarray(picture.convert("RGB"))


def read_mask(path: pathlib.Path, coloured: bool) -> np.ndarray:
    """`[height, width]`, int32: the value of each pixel, or its colour as `Classes` counts them."""
    picture = _opened(path)
    if coloured:
        red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB"), np.int32), -1, 0)
        return 65536 * red + 256 * green + blue
    values = np.asarray(picture)
    if values.ndim == 3:
        values, others = values[..., 0], values[..., 1 : 3 if values.shape[-1] > 2 else 1]
        if (others != values[..., None]).any():
            raise UsageError(f"{path}: has colours: say with --palette which class each of them is")
    if (values != values.astype(np.int32)).any() or values.min() < 0:
        raise UsageError(f"{path}: holds values that are not 0, 1, 2, ...")
    return values.astype(np.int32)


def _opened(path: pathlib.Path) -> Any:
    """The picture, decoded."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds
        unknown = "cannot identify" in str(error)
        reason = "no picture that Pillow knows" if unknown else str(error).split("\n")[0]
        raise UsageError(f"{path}: cannot be read ({reason})") from None


# Of one size


def fitted(
    image: np.ndarray, classes: np.ndarray, size: int, fit: str, rng: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """An image and its classes in `size` rows and columns.

    Args:
        image: `[height, width, 3]`, uint8.
        classes: `[height, width]`, uint8.
        size: rows and columns.
        fit: `"resize"`, or `"crop"`; what a crop has beyond the image is grey and `IGNORED`.
        rng: draws where to crop; without it, from the middle.
    """
    if fit == "resize":
        return resized(image, size, size, "BILINEAR"), resized(classes, size, size, "NEAREST")
    missing = [max(size - n, 0) for n in classes.shape]
    pad = [(n // 2, n - n // 2) for n in missing]
    image = np.pad(image, [*pad, (0, 0)], constant_values=FILL)
    classes = np.pad(classes, pad, constant_values=IGNORED)
    room = [n - size for n in classes.shape]
    top, left = (n // 2 if rng is None else int(rng.integers(n + 1)) for n in room)
    window = slice(top, top + size), slice(left, left + size)
    return image[window], classes[window]


def resized(array: np.ndarray, height: int, width: int, method: str) -> np.ndarray:
    """An image, a map of classes or one of floats in another size, as Pillow does it."""
    from PIL import Image

    picture = Image.fromarray(array).resize((width, height), Image.Resampling[method])
    return np.asarray(picture)


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
