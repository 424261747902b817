"""How plausible restorations are: their likelihood given the low pictures."""

from pathlib import Path

from zmar_jax.data.errors import DataError
from zmar_jax.data.folders import Tell, id_of, match
from zmar_jax.data.hashing import id_seed
from zmar_jax.evaluate.network import Network, batches
from zmar_jax.evaluate.pairs import inspect, read_eight_bits
from zmar_jax.imaging.images import Step, find_photos


def find_pairs(
    low: Path, restored: Path, tell: Tell = lambda text: None
) -> list[tuple[str, Path, Path]]:
    """(id, low, restored) of two files, or of two folders by name (`folders.match`).

    `tell` is called as `images.find_photos` does.

    Raises:
      DataError, ImageError: one is missing, a file and a folder, or folders whose files do not
        pair.
    """
    if low.is_dir() != restored.is_dir():
        for path in (low, restored):
            if not path.exists():
                raise DataError(f"{path}: no such file or folder")
        raise DataError(f"expected two files or two folders, got {low} and {restored}")
    if low.is_dir():
        return match(find_photos([low], tell=tell), find_photos([restored], tell=tell))
    return [(id_of(Path(low.name)), low, restored)]


def score_pairs(
    network: Network,
    pairs: list[tuple[str, Path, Path]],
    seed: int = 0,
    step: Step = lambda low, restored, error: None,
) -> dict[str, float]:
    """Negative log-likelihood of each restored picture given its low one, bits per dimension.

    Args:
      pairs: (id, low, restored); seed: of the dequantisation noise, which is another for each id.

    Raises:
      DataError: pictures that cannot be read, of two sizes in one pair, or below 16x16.
    """
    sizes, _ = inspect([(low, restored) for _, low, restored in pairs])
    network.check([str(low) for _, low, _ in pairs], sizes)
    scores = {}
    for batch in batches(sizes, network.rows, network.config.padded):
        ids, lows, restored = zip(*(pairs[i] for i in batch), strict=True)
        features = network.encode(network.see([read_eight_bits(path) for path in lows]))
        seeds = [id_seed(seed, id_) for id_ in ids]
        pictures = [read_eight_bits(path) for path in restored]
        bits = network.bits_per_dim(pictures, seeds, features)
        scores |= dict(zip(ids, bits, strict=True))
        for paths in zip(lows, restored, strict=True):
            step(*paths, None)
    return {id_: scores[id_] for id_, _, _ in pairs}
