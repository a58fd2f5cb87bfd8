"""Colours of the pictures for light and dark pages; images are blue and texts orange wherever they are drawn."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.colors import LinearSegmentedColormap


@dataclass(frozen=True)
class Theme:
    """Colours by what they are for. lost, gained: the ends of a scale whose middle is the page; lines: to tell curves apart."""

    page: str
    ink: str
    soft: str
    grid: str
    image: str
    text: str
    lost: str
    gained: str
    lines: tuple[str, ...]

    def of(self, modality: str) -> str:
        """A modality's colour."""
        return {"image": self.image, "text": self.text}[modality]

    def scale(self) -> "LinearSegmentedColormap":
        """From `gained` over the page to `lost`: purple and green, which every kind of colour vision tells apart."""
        from matplotlib.colors import LinearSegmentedColormap

        return LinearSegmentedColormap.from_list("cost", [self.gained, self.page, self.lost])


_VIBRANT = ("#0077bb", "#ee7733", "#009988", "#ee3377", "#33bbee", "#cc3311", "#7f7f7f")
"""Paul Tol's vibrant scheme, for every kind of colour vision (https://personal.sron.nl/~pault/)."""

THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#59636e", "#d1d9e0", "#0969da", "#bc4c00", "#762a83", "#1b7837", _VIBRANT),
    "dark": Theme(
        "#0d1117",
        "#f0f6fc",
        "#9198a1",
        "#3d444d",
        "#4493f8",
        "#db6d28",
        "#b66cd0",
        "#3fa55f",
        ("#4ba3e3", *_VIBRANT[1:5], "#ff6b52", "#a5a5a5"),
    ),
}
