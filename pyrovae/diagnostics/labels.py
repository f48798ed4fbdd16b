"""Names of latent dimensions, the same in all results."""

from collections.abc import Sequence
from itertools import product


def dimension_labels(site: str, event_shape: Sequence[int]) -> list[str]:
    """Name the dimensions of a latent site: "z" for a number, "z[0]" of a vector, "z[0,1]" of a matrix.

    Args:
        site: Name of the site.
        event_shape: Shape of one latent.

    Returns:
        The names, in the order of the flattened latent.
    """
    if not len(event_shape):
        return [site]
    return [f"{site}[{','.join(map(str, place))}]" for place in product(*map(range, event_shape))]
