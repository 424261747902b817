"""Draws docs/model.svg: the encoder, the conditions and the flow, with the published sizes.

$ python scripts/draw_model.py

Sizes are those of `ModelConfig`; a test holds the file in docs/ to what this draws.
"""

from pathlib import Path

import tyro
from tyro.conf import Positional

from zmar_jax.config import ModelConfig

OUT = Path(__file__).parents[1] / "docs" / "model.svg"
WIDTH, HEIGHT = 1020, 790
ROWS = {"H": 110, "H/2": 220, "H/4": 330, "H/8": 440}
"""Where each resolution is drawn, from the top."""
DOWN, LATENT, UP, CONDITION, FLOW = 150, 290, 430, 640, 880
"""Centres of the columns, from the left."""
FILL = {
    "plain": "#e8eef7",
    "masked": "#f7e3d4",
    "condition": "#fdf6d0",
    "flow": "#dff0e0",
    "tensor": "#ffffff",
}
HEAD = f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" \
orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" fill="#444"/></marker></defs>
<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>"""


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, kind: str, *lines: str, width: float = 124, height: float = 46) -> str:
    """A box around (x, y): its name, and smaller lines below it."""
    parts = [
        f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" '
        f'height="{height:g}" rx="5" fill="{FILL[kind]}" stroke="#444"/>'
    ]
    top = y - 7.5 * (len(lines) - 1) + 4.5
    for i, line in enumerate(lines):
        parts.append(text(x, top + 15 * i, line, 11 if i else 13))
    return "\n".join(parts)


def arrow(*points: tuple[float, float], both: bool = False, dashed: bool = False) -> str:
    """A line through the points, with a tip at its end, or at both."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    start = ' marker-start="url(#tip)"' if both else ""
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return (
        f'<polyline points="{path}" fill="none" stroke="#444"{dash}{start} marker-end="url(#tip)"/>'
    )


def encoder(config: ModelConfig) -> list[str]:
    """Levels 1 to 3 down the left, the latent below, the decoder up the right."""
    dim, blocks, heads = config.dim, config.blocks, config.heads
    h, h2, h4, h8 = ROWS.values()

    def stage(x: float, y: float, name: str, level: int, width: int) -> str:
        kind = "masked" if name.startswith("Level") else "plain"
        plural = "s" if heads[level] > 1 else ""
        sizes = f"{blocks[level]} blocks, {heads[level]} head{plural}"
        return box(x, y, kind, name, f"{width} channels", sizes, height=56)

    out = [text(DOWN, 62, "lr = log image, mask"), arrow((DOWN, 68), (DOWN, h - 30))]
    for level, y in enumerate((h, h2, h4)):
        out.append(stage(DOWN, y, f"Level{level + 1}", level, dim << level))
        width = 2 * dim if level == 0 else dim << level
        out.append(stage(UP, y, f"Dec{level + 1}", level, width))
        out.append(arrow((DOWN + 63, y), (UP - 64, y), dashed=True))
        out.append(text(LATENT, y - 5, f"e{level + 1}", 11))
    out.append(stage(LATENT, h8, "Latent", 3, 8 * dim))
    for above, below in ((h, h2), (h2, h4)):
        out.append(arrow((DOWN, above + 29), (DOWN, below - 30)))
        out.append(arrow((UP, below - 29), (UP, above + 30)))
        out.append(text(DOWN - 8, (above + below) / 2 + 4, "unshuffle2", 11, "end"))
        out.append(text(UP - 8, (above + below) / 2 + 4, "shuffle2", 11, "end"))
    out.append(arrow((DOWN, h4 + 29), (DOWN, h8), (LATENT - 64, h8)))
    out.append(arrow((LATENT + 63, h8), (UP, h8), (UP, h4 + 30)))
    sizes = f"{config.refinement_blocks} blocks"
    out.append(box(CONDITION, h, "plain", "Refine: f", f"{2 * dim} channels", sizes, height=56))
    out.append(arrow((UP + 63, h), (CONDITION - 64, h)))
    return out


def conditions(config: ModelConfig) -> list[str]:
    """u beside f, at three resolutions."""
    h, h2, h4, h8 = ROWS.values()
    out, channels = [], f"{config.condition_channels} channels"
    for y, name, u in ((h2, "fea_up2", "conv1(d2)"), (h4, "fea_up1", "d3"), (h8, "fea_up0", "")):
        out.append(box(CONDITION, y, "condition", name, channels))
        out.append(arrow((CONDITION + 63, y), (FLOW - 72, y)))
        if u:
            out.append(arrow((UP + 63, y), (CONDITION - 64, y)))
            out.append(text((UP + CONDITION) / 2, y - 6, u, 11))
    # from the latent, below the line that goes up to the decoder
    out.append(
        arrow((LATENT, h8 + 29), (LATENT, h8 + 50), (CONDITION, h8 + 50), (CONDITION, h8 + 25))
    )
    out.append(text((LATENT + CONDITION) / 2, h8 + 45, "conv1(l)", 11))
    for above, below, first in ((h, h2, 29), (h2, h4, 24), (h4, h8, 24)):
        out.append(arrow((CONDITION, above + first), (CONDITION, below - 25)))
        out.append(text(CONDITION + 8, (above + below) / 2 + 4, "f, resized", 11, "start"))
    return out


def flow(config: ModelConfig) -> list[str]:
    """The image above, the latent below, three levels between."""
    h, h2, h4, h8 = ROWS.values()
    out = [box(FLOW, h, "tensor", "image x", "H x W x 3", width=140)]
    steps = f"{config.flow_additional_steps} + {config.flow_steps} steps"
    channels = [3 * 4**level for level in (1, 2, 3)]
    for level, y in enumerate((h2, h4, h8)):
        lines = (f"flow level {level + 1}", f"squeeze2 to {channels[level]} channels", steps)
        out.append(box(FLOW, y, "flow", *lines, width=142, height=56))
    z = h8 + 100
    out.append(box(FLOW, z, "tensor", "latent z", f"H/8 x W/8 x {channels[-1]}", width=140))
    edges = [(h + 24, h2 - 29), (h2 + 29, h4 - 29), (h4 + 29, h8 - 29), (h8 + 29, z - 24)]
    out.extend(arrow((FLOW, a), (FLOW, b), both=True) for a, b in edges)
    out.append(text(FLOW - 12, 168, "down: nll", 11, "end"))
    out.append(text(FLOW + 12, 168, "up: restoring", 11, "start"))
    return out


def chain(y: float, title: str, parts: list[tuple[str, str, str]]) -> list[str]:
    """Boxes in a row; each (kind, name, formula)."""
    out = [text(40, y - 36, title, 13, "start")]
    x = 40.0
    for i, (kind, name, formula) in enumerate(parts):
        width = max(7.2 * len(formula), 8 * len(name), 60) + 16
        if i:
            out.append(arrow((x - 22, y), (x - 1, y)))
        out.append(box(x + width / 2, y, kind, name, formula, width=width))
        x += width + 22
    return out


def draw(config: ModelConfig) -> str:
    """The figure as SVG."""
    parts = [HEAD, text(290, 30, "ZMAR encoder", 17), text(FLOW, 30, "SNFlow", 17)]
    parts += [text(40, y + 4, name, 13) for name, y in ROWS.items()]
    parts += [*encoder(config), *conditions(config), *flow(config)]
    block = [
        ("masked", "ZMA, by the mask", "x += ZMA(LN1(x))"),
        ("plain", "MDTA, channels", "x += MDTA(LN1(x))"),
        ("plain", "GDFN, gated", "x += GDFN(LN2(x))"),
    ]
    parts += chain(650, "A masked block; plain blocks have no ZMA", block)
    step = [
        ("flow", "actnorm", "(z + bias) exp(logs)"),
        ("flow", "invconv", "W z"),
        ("flow", "fFeatures(c)", "z = (z + t) s"),
        ("flow", "fAffine([z1, c])", "z2 = (z2 + t) s"),
        ("flow", "fAffine2(z1)", "z2 = (z2 + t) s"),
    ]
    title = "A conditional step, condition c; additional steps have the first two only"
    parts += [*chain(745, title, step), "</svg>"]
    return "\n".join(parts) + "\n"


def main(out: Positional[Path] = OUT, /) -> None:
    """Draws the figure.

    Args:
      out: The .svg file to write.
    """
    out.write_text(draw(ModelConfig()))
    print(out)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
