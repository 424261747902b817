"""Zero-element masks measure as docs/datasets.md says, and are the same wherever they are made."""

import zlib
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zmar_jax.config import MaskConfig
from zmar_jax.data import DataError
from zmar_jax.data.masks import (
    apply_mask,
    draw_mask,
    load_masks,
    lose_pixels,
    lost_pixels,
    masks_digest,
    read_mask,
    read_masks,
    resize_mask,
)
from zmar_jax.imaging.images import ImageError

SEEDS = st.integers(0, 2**32 - 1)
EDGES = [1, 2, 3, 4, 6, 8, 12]
RANGES = {
    "share": (0.12, 0.37),
    "smallest share of a 1/16th": (0.01, 0.15),
    "largest share of a 1/16th": (0.42, 0.66),
    "median run": (2, 2),
    "90th percentile of runs": (6, 10),
    "longest run": (70, 190),
}
"""What the authors' six masks measure (datasets.md, "Zero-element masks")."""


@pytest.fixture(scope="module")
def masks() -> list[np.ndarray]:
    return [lost_pixels(seed, 400, 600) for seed in range(200)]


def test_statistics_are_those_of_the_authors_masks(masks):
    measured = dict(zip(RANGES, np.transpose([_measure(mask) for mask in masks]), strict=True))
    for name, values in measured.items():
        low, high = RANGES[name]
        inside = np.mean((values >= low) & (values <= high))
        # the authors' ranges are those of six masks; of 200 a few are more extreme
        assert inside >= (1 if name == "share" else 0.93), (name, inside)
        assert low <= values.mean() <= high or name == "median run", name
    assert measured["share"].mean() == pytest.approx(0.24, abs=0.01)
    # shares fill their range, evenly
    assert np.histogram(measured["share"], 5, (0.12, 0.37))[0].min() >= 20


def _measure(mask: np.ndarray) -> tuple[float, ...]:
    height, width = mask.shape
    tiles = mask.reshape(4, height // 4, 4, width // 4).mean((1, 3))
    edges = np.flatnonzero(np.diff(np.pad(mask, ((0, 0), (1, 1))).ravel()))
    runs = edges[1::2] - edges[::2]
    return (
        mask.mean(),
        tiles.min(),
        tiles.max(),
        np.median(runs),
        np.percentile(runs, 90),
        runs.max(),
    )


def test_blocks_are_squares_of_several_sizes_in_every_mask(masks):
    for mask in masks[:40]:
        edges = _lone_squares(mask)[:, 2]
        found, counts = np.unique(edges, return_counts=True)
        # regions cut blocks off, and touching blocks can make other squares
        assert counts[np.isin(found, EDGES)].sum() >= 0.98 * len(edges)
        assert np.isin(EDGES, found).sum() >= 5


def test_each_region_has_its_own_size_of_blocks(masks):
    same = []
    for mask in masks[:10]:
        squares = _lone_squares(mask)
        large = squares[squares[:, 2] > 2]
        distance = ((large[:, None, :2] - large[None, :, :2]) ** 2).sum(-1)
        np.fill_diagonal(distance, 10**9)
        same.append(np.mean(large[distance.argmin(1), 2] == large[:, 2]))
    assert np.mean(same) > 0.7


def _lone_squares(mask: np.ndarray) -> np.ndarray:
    """[n, 3]: left, top and edge of each lost square whose neighbours are all kept."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    left, top, width, height, area = stats[1:].T
    square = (width == height) & (area == width * height)
    return np.stack([left, top, width], 1)[square]


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 90), st.integers(1, 90), st.data())
def test_a_window_is_that_part_of_the_whole(seed, height, width, data):
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    h, w = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    part = lost_pixels(seed, height, width, window=(top, left, h, w))
    assert part.shape == (h, w)
    whole = lost_pixels(seed, height, width)
    assert np.array_equal(part, whole[top : top + h, left : left + w])


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("size", [(160, 160), (400, 600), (512, 960)])
def test_the_share_asked_for_is_lost(share, size):
    """As exactly as `lost_pixels` says: within four deviations of its error."""
    found = [lost_pixels(seed, *size, share=(share, share)).mean() for seed in range(12)]
    np.testing.assert_allclose(found, share, rtol=0, atol=0.02)
    np.testing.assert_allclose(np.mean(found), share, rtol=0, atol=0.005)
    assert np.std(found) < 0.0085


def test_jax_makes_the_same_masks_of_traced_seeds_and_windows():
    def crop(seed, top, left):
        return lost_pixels(seed, 400, 600, window=(top, left, 160, 160), xp=jnp)

    crops = jax.jit(jax.vmap(crop))
    seeds, tops, lefts = (
        np.uint32([0, 7, 2**32 - 1]),
        np.int32([0, 100, 240]),
        np.int32([440, 3, 0]),
    )
    made = np.asarray(crops(seeds, tops, lefts))
    for mask, seed, top, left in zip(made, seeds, tops, lefts, strict=True):
        assert np.array_equal(mask, lost_pixels(seed, 400, 600, window=(top, left, 160, 160)))


@pytest.mark.parametrize("share", [(0.0, 0.0), (0.95, 0.95), (0.2, 0.6)])
def test_jax_makes_the_same_whole_masks(share):
    made = jax.jit(lambda seed: lost_pixels(seed, 75, 41, share, xp=jnp))(np.uint32(3))
    assert np.array_equal(np.asarray(made), lost_pixels(3, 75, 41, share))


def test_masks_never_change():
    # test images would get other masks, and every masked score would mean something else
    masks = np.stack([lost_pixels(seed, 96, 128) for seed in range(8)])
    assert zlib.crc32(np.packbits(masks).tobytes()) == 522868412


def test_apply_mask_zeroes_all_channels_in_both():
    image = np.arange(1, 25, dtype=np.uint16).reshape(2, 4, 3)
    lost = np.array([[1, 0, 0, 0], [0, 0, 1, 1]], bool)
    masked = apply_mask(image, lost)
    assert masked.dtype == np.uint16
    assert not masked[lost].any()
    assert np.array_equal(masked[~lost], image[~lost])
    assert np.array_equal(np.asarray(apply_mask(jnp.asarray(image), lost, jnp)), masked)


def test_resizing_is_nearest_as_in_pillow():
    # even sizes: where a centre falls on an edge, Pillow goes by the rounding of its sums
    mask = lost_pixels(1, 40, 60)
    for height, width in ((40, 60), (80, 60), (96, 152), (16, 24)):
        expected = np.asarray(
            Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
        )
        assert np.array_equal(resize_mask(mask, height, width), expected)
    part = resize_mask(mask, 100, 151, (10, 20, 30, 40))
    assert np.array_equal(part, resize_mask(mask, 100, 151)[10:40, 20:60])


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four masks, the n-th of which loses the n-th row of four; of several kinds of files."""
    for n in range(4):
        rows = np.where(np.arange(4) == n, 255, 127).astype(np.uint8)
        pixels = np.repeat(rows[:, None], 6, 1)
        image = Image.fromarray(pixels)
        if n == 1:
            image = image.convert("RGB")
        if n == 2:
            image = Image.fromarray((pixels.astype(np.uint16) << 8) + 255)
        image.save(tmp_path / f"{n}.{'bmp' if n == 3 else 'png'}")
    return tmp_path


def test_a_folder_of_masks(folder):
    config = MaskConfig(source=str(folder))
    masks = load_masks(config)
    for n, mask in enumerate(masks):
        assert mask.dtype == bool
        assert np.array_equal(mask.all(1), np.arange(4) == n)
        assert np.array_equal(mask.any(1), np.arange(4) == n)
    drawn = [int(draw_mask(seed, (8, 6), config, masks).any(1).argmax()) // 2 for seed in range(60)]
    assert set(drawn) == {0, 1, 2, 3}
    assert drawn == [
        int(draw_mask(seed, (4, 6), config, masks).any(1).argmax()) for seed in range(60)
    ]


@pytest.mark.parametrize("source", ["procedural", "none", "folder"])
def test_a_crop_loses_what_the_whole_loses(source, folder):
    config = MaskConfig(source=str(folder) if source == "folder" else source)
    masks = load_masks(config)
    image = np.random.default_rng(0).integers(1, 256, (50, 70, 3), dtype=np.uint8)
    whole = apply_mask(image, draw_mask(5, (50, 70), config, masks))
    window = (10, 20, 30, 40)
    crop = lose_pixels(image[10:40, 20:60], 5, (50, 70), window, config, masks)
    assert np.array_equal(crop, whole[10:40, 20:60])
    assert (crop == 0).any() == (source != "none")


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(ImageError, match="no_such"):
        read_masks(tmp_path / "no_such")
    with pytest.raises(ImageError, match="no photograph in this folder"):
        read_masks(tmp_path)
    path = tmp_path / "all.png"
    Image.fromarray(np.full((4, 4), 128, np.uint8)).save(path)
    with pytest.raises(DataError, match=r"all\.png: .*loses every pixel; remove it, or invert it"):
        read_masks(tmp_path)
    with pytest.raises(DataError, match=r"all\.png: expected a folder"):
        read_masks(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ImageError, match=r"all\.png"):
        read_masks(tmp_path)


def saved_mask(path: Path, *rows: list[int], dtype=np.uint8) -> Path:
    Image.fromarray(np.array(rows, dtype)).save(path)
    return path


@pytest.mark.parametrize(
    ("rows", "dtype"),
    [
        (([0, 1], [1, 0]), np.uint8),
        (([0, 1], [1, 0]), np.uint16),
        (([0, 255], [128, 127]), np.uint8),
        (([0, 65535], [32768, 32767]), np.uint16),
    ],
)
def test_white_is_the_upper_half_of_the_files_range(rows, dtype, tmp_path):
    path = saved_mask(tmp_path / "m.png", *rows, dtype=dtype)
    np.testing.assert_array_equal(read_mask(path), [[False, True], [True, False]])


def test_masks_that_lose_nothing_are_refused(tmp_path):
    black, grey = tmp_path / "black.png", tmp_path / "grey.png"
    assert not read_mask(saved_mask(black, [0, 0])).any()  # of one picture, that is an answer
    with pytest.raises(DataError, match=r"black\.png: a mask that loses no pixel"):
        read_masks(tmp_path)
    saved_mask(grey, [0, 100])
    with pytest.raises(DataError, match=r"without a pixel above 127 .*the highest value is 100 of"):
        read_mask(grey)
    with pytest.raises(DataError, match=r"black\.png: .*; .*grey\.png: "):
        read_masks(tmp_path)


def test_the_digest_of_masks_follows_pixels_and_order(folder):
    masks = load_masks(MaskConfig(source=str(folder)))
    other = [masks[0], masks[1], masks[2], ~masks[3]]
    digests = {masks_digest(each) for each in (masks, masks[::-1], other, masks[:3], ())}
    assert len(digests) == 5
    assert masks_digest(masks) == masks_digest(read_masks(folder))
