"""Draws a pair's way through the model, for light and dark pages: `python docs/pictures/architecture.py`."""

from pathlib import Path
from string import Template

WIDTH, HEIGHT = 860, 660
LIGHT = {"ink": "#1f2328", "soft": "#59636e", "line": "#818b98", "panel": "#f6f8fa", "image": "#0969da", "text": "#bc4c00"}
DARK = {"ink": "#f0f6fc", "soft": "#9198a1", "line": "#656c76", "panel": "#151b23", "image": "#4493f8", "text": "#db6d28"}
LIGHT |= {"expert": "#8250df", "page": "#ffffff"}
DARK |= {"expert": "#ab7df8", "page": "#0d1117"}
SQUARE = 18
RANKS = (545, 745)
"""The middle of each rank's column."""


def text(x: float, y: float, words: str, size: int = 15, colour: str = "ink", weight: int = 400, anchor: str = "middle") -> str:
    """Words whose baseline is at y."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="${colour}" font-weight="{weight}" text-anchor="{anchor}">{words}</text>'
    )


def box(x: float, y: float, width: float, height: float, *lines: str, edge: str = "line", fill: str = "page") -> str:
    """A rounded box with its lines in the middle: the first is what happens, the second says more."""
    drawn = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="${fill}" stroke="${edge}" stroke-width="1.5"/>'
    ]
    top = y + height / 2 + 5 - 9 * (len(lines) - 1)
    for row, line in enumerate(lines):
        style = {"size": 15, "weight": 600} if row == 0 else {"size": 13, "colour": "soft"}
        drawn.append(text(x + width / 2, top + 18 * row, line, **style))
    return "".join(drawn)


def arrow(x1: float, y1: float, x2: float, y2: float, colour: str = "line") -> str:
    """A line with a head at its second end."""
    return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="${colour}" stroke-width="1.6" fill="none" marker-end="url(#{colour})"/>'


def tokens(x: float, y: float, kinds: str, size: int = SQUARE) -> str:
    """A row of tokens, `i` of an image, `t` of a text, `.` an empty slot."""
    colours = {"i": "$image", "t": "$text"}
    return "".join(
        f'<rect x="{x + place * (size + 2)}" y="{y}" width="{size}" height="{size}" rx="3" '
        + (f'fill="{colours[kind]}"/>' if kind in colours else 'fill="none" stroke="$line" stroke-dasharray="3 2"/>')
        for place, kind in enumerate(kinds)
    )


def heads() -> str:
    """The heads of the arrows."""
    marker = (
        '<marker id="{0}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="${0}"/></marker>'
    )
    return "<defs>" + "".join(marker.format(colour) for colour in ("line", "image", "text", "expert")) + "</defs>"


def tower() -> list[str]:
    """The left column: from a shard to the loss."""
    middle = 205
    loss = 560
    return [
        box(120, 12, 170, 50, "shard.tar", "photo.jpg + photo.txt"),
        arrow(165, 62, 115, 90, "image"),
        arrow(245, 62, 295, 90, "text"),
        box(20, 92, 178, 50, "decode, crop", "patches to tokens", edge="image"),
        box(212, 92, 178, 50, "tokenize", "pieces to tokens", edge="text"),
        arrow(115, 142, 115, 168, "image"),
        arrow(301, 142, 301, 168, "text"),
        tokens(26, 171, "iiiiiiiiiiiitttttt"),
        text(middle, 209, "one token stream [N, D] of both modalities", 13, "soft"),
        arrow(middle, 218, middle, 244),
        '<rect x="20" y="246" width="370" height="196" rx="10" fill="$panel" stroke="$line" stroke-dasharray="5 4"/>',
        text(378, 265, "× L blocks", 13, "soft", anchor="end"),
        box(36, 278, 338, 48, "attention", "inside each image, inside each text"),
        arrow(125, 326, 125, 352),
        arrow(290, 326, 290, 352, "expert"),
        box(36, 354, 158, 68, "dense MLP", "one for all tokens"),
        box(216, 354, 158, 68, "expert layer", "each token to its own", edge="expert"),
        text(middle, 393, "or", 13, "soft"),
        arrow(middle, 442, middle, 468),
        box(100, 470, 210, 50, "pool, project", "one unit vector each"),
        arrow(middle, 520, middle, 546),
        *(
            f'<rect x="{50 + 15 * column}" y="{loss + 15 * row}" width="13" height="13" rx="2" '
            + ('fill="$expert"/>' if row == column else 'fill="none" stroke="$line"/>')
            for row in range(5)
            for column in range(5)
        ),
        text(87, loss + 91, "texts", 12, "text"),
        f'<g transform="rotate(-90 38 {loss + 38})">' + text(38, loss + 42, "images", 12, "image") + "</g>",
        text(145, loss + 22, "contrastive loss", 15, weight=600, anchor="start"),
        text(145, loss + 41, "over the pairs of all ranks", 13, "soft", anchor="start"),
        text(145, loss + 60, "+ auxiliary losses of the routers", 13, "soft", anchor="start"),
    ]


def expert_layer() -> list[str]:
    """The right panel: what an expert layer does on two ranks."""
    top, left = 92, 440
    drawn = [
        f'<path d="M374 354L{left} {top + 6}V{HEIGHT - 16}L374 422z" fill="$expert" fill-opacity="0.08"/>',
        f'<rect x="{left}" y="{top}" width="{WIDTH - left - 10}" height="{HEIGHT - top - 10}" rx="10" '
        'fill="$panel" stroke="$expert" stroke-width="1.5"/>',
        text((left + WIDTH - 10) / 2, top + 26, "an expert layer, its 8 experts on two ranks", 15, weight=600),
    ]
    rows = (("iiiiitt", "iit.", "it.."), ("iiiiitt", "iii.", "itt."))
    for rank, (middle, (mine, low, high)) in enumerate(zip(RANKS, rows, strict=True)):
        other = RANKS[1 - rank]
        drawn += [
            text(middle, 146, f"rank {rank}", 13, "soft"),
            tokens(middle - 69, 156, mine),
            arrow(middle, 178, middle, 198),
            box(middle - 85, 200, 170, 50, "route", "gates; who goes first"),
            arrow(middle, 250, middle, 270),
            box(middle - 85, 272, 170, 78, fill="page"),
            text(middle, 291, "dispatch", 15, weight=600),
            tokens(middle - 76, 300, low, 15),
            tokens(middle + 10, 300, high, 15),
            text(middle - 43, 338, "to 0–3", 12, "soft"),
            text(middle + 43, 338, "to 4–7", 12, "soft"),
            arrow(middle - 43 if rank == 0 else middle + 43, 350, middle, 398, "expert"),
            arrow(middle + 43 if rank == 0 else middle - 43, 350, other + (-30 if rank == 0 else 30), 398, "expert"),
            box(middle - 85, 400, 170, 50, f"experts {4 * rank}–{4 * rank + 3}", "MLPs of their own", edge="expert"),
            arrow(middle, 450, middle, 508, "expert"),
            arrow(middle + (30 if rank == 0 else -30), 450, other + (-30 if rank == 0 else 30), 508, "expert"),
            box(middle - 85, 510, 170, 50, "combine", "× gate, back in place"),
            arrow(middle, 560, middle, 582),
            tokens(middle - 69, 585, mine),
        ]
    for y in (378, 483):
        drawn += [
            f'<rect x="608" y="{y - 13}" width="74" height="19" rx="4" fill="$panel"/>',
            text(645, y + 1, "all-to-all", 13, "expert", 600),
        ]
    return [*drawn, text(645, 631, "no slot left: the token goes on without an expert", 13, "soft")]


def pictures() -> dict[str, str]:
    """File names to SVG."""
    font = "-apple-system,BlinkMacSystemFont,'Segoe UI',Helvetica,Arial,sans-serif"
    title = "A pair's way: shards, tokens, blocks with attention and dense or expert layers, embeddings, contrastive loss"
    drawing = Template(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="{font}" role="img"><title>{title}</title>\n'
        + "\n".join([heads(), *tower(), *expert_layer()])
        + "\n</svg>\n"
    )
    return {f"architecture-{name}.svg": drawing.substitute(colours) for name, colours in (("light", LIGHT), ("dark", DARK))}


def main() -> None:
    """Write both pictures beside this file."""
    for name, picture in pictures().items():
        Path(__file__).with_name(name).write_text(picture)


if __name__ == "__main__":
    main()
