"""Silhouettes of ten garments, shaded as a catalogue's grey photographs are."""

import numpy as np
from scipy import ndimage

from base_model.canvas import SIZE, Generator, Mask, curve, elastic, grid, noise

Parts = tuple[Mask, list[tuple[list[tuple[float, float]], float, float]]]  # outline; (line, width, grey) details


def _mirror(right: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return right + [(1 - x, y) for x, y in reversed(right)]


def _upper_body(
    rng: Generator, half: float, hem: float, sleeve: float, flare: float, neck: float, width: float, apart: float
) -> Mask:
    """Draw a body with two sleeves.

    Args:
        rng: Source of the jitter.
        half: Half the width of the chest.
        hem: Height of the lower edge.
        sleeve: Length of the sleeves; 0 for none, about 0.65 to the wrist.
        flare: How much wider the hem is than the chest.
        neck: Depth of the neckline.
        width: Width of a sleeve at the wrist.
        apart: How far the sleeve's end stands off the body.
    """
    top, shoulder, opening = rng.uniform(0.04, 0.08), half * rng.uniform(0.95, 1.1), rng.uniform(0.07, 0.12)
    slope = rng.uniform(0.03, 0.08)
    right = [
        (0.5, top + neck),
        (0.5 + opening * 0.7, top + 0.6 * neck),
        (0.5 + opening, top),
        (0.5 + shoulder, top + slope),
    ]
    if sleeve > 0:
        end_x = min(0.5 + shoulder + apart, 0.97)
        end_y = min(top + slope + sleeve, 0.96)
        right += [(end_x, end_y), (end_x - width, end_y + 0.02), (0.5 + half * 0.97, top + 0.26)]
    right += [(0.5 + half, top + 0.4), (0.5 + half + flare, hem)]
    return Mask().polygon(_mirror(right))


def t_shirt(rng: Generator) -> Parts:
    """Short sleeves, or hardly any; a round neck."""
    half = rng.uniform(0.22, 0.3)
    return (
        _upper_body(
            rng,
            half,
            rng.uniform(0.88, 0.97),
            rng.uniform(0.1, 0.3),
            rng.uniform(-0.03, 0.03),
            rng.uniform(0.03, 0.14),
            rng.uniform(0.08, 0.13),
            rng.uniform(0.08, 0.18),
        ),
        [],
    )


def pullover(rng: Generator) -> Parts:
    """Long sleeves, no opening, often with darker cuffs and hem."""
    half = rng.uniform(0.21, 0.27)
    mask = _upper_body(
        rng,
        half,
        rng.uniform(0.86, 0.96),
        rng.uniform(0.68, 0.84),
        rng.uniform(-0.03, 0.02),
        rng.uniform(0.01, 0.07),
        rng.uniform(0.09, 0.13),
        rng.uniform(0.06, 0.16),
    )
    lines = [([(0.5 - half, 0.9), (0.5 + half, 0.9)], 0.02, rng.uniform(0.6, 1))] if rng.random() < 0.4 else []
    return mask, lines


def shirt(rng: Generator) -> Parts:
    """Long or half sleeves, a collar, buttons down the front."""
    half = rng.uniform(0.2, 0.27)
    sleeve = rng.uniform(0.65, 0.82) if rng.random() < 0.7 else rng.uniform(0.2, 0.35)
    mask = _upper_body(
        rng,
        half,
        rng.uniform(0.88, 0.97),
        sleeve,
        rng.uniform(-0.03, 0.05),
        rng.uniform(0.06, 0.16),
        rng.uniform(0.07, 0.11),
        rng.uniform(0.05, 0.15),
    )
    dark = rng.uniform(0.45, 0.75)
    lines = [([(0.5, 0.14), (0.5, 0.92)], 0.014, dark)]
    lines += [([(0.5 + 0.015, y), (0.52, y)], 0.022, 0.4) for y in np.arange(0.22, 0.9, rng.uniform(0.1, 0.14))]
    lines += [([(0.5, 0.16), (0.5 + side * 0.11, 0.07)], 0.02, dark) for side in (-1, 1)]
    return mask, lines


def coat(rng: Generator) -> Parts:
    """Long sleeves close to the body, open front with lapels, down to the lower edge."""
    half = rng.uniform(0.2, 0.27)
    mask = _upper_body(
        rng,
        half,
        rng.uniform(0.95, 0.99),
        rng.uniform(0.66, 0.82),
        rng.uniform(0.0, 0.07),
        rng.uniform(0.03, 0.18),
        rng.uniform(0.08, 0.13),
        rng.uniform(0.03, 0.11),
    )
    dark = rng.uniform(0.15, 0.45)
    lines = [([(0.5, 0.2), (0.5, 0.99)], rng.uniform(0.015, 0.035), dark)]
    if rng.random() < 0.8:
        depth = rng.uniform(0.25, 0.45)
        lines += [([(0.5, depth), (0.5 + side * 0.13, 0.08)], 0.025, dark) for side in (-1, 1)]
    if rng.random() < 0.5:
        lines += [([(0.5 + side * 0.09, 0.65), (0.5 + side * 0.19, 0.63)], 0.015, dark) for side in (-1, 1)]
    if rng.random() < 0.3:
        lines.append(([(0.5 - half, 0.55), (0.5 + half, 0.55)], 0.03, dark))
    return mask, lines


def dress(rng: Generator) -> Parts:
    """Narrow, from the upper to the lower edge, wider below the waist; straps or short sleeves."""
    chest, waist, hem = rng.uniform(0.12, 0.17), rng.uniform(0.09, 0.14), rng.uniform(0.13, 0.28)
    level, strap = rng.uniform(0.35, 0.5), rng.uniform(0.05, 0.11)
    right = [(0.5, 0.05 + rng.uniform(0.03, 0.12)), (0.5 + strap, 0.03), (0.5 + strap + 0.04, 0.03)]
    if rng.random() < 0.35:
        reach, length = rng.uniform(0.05, 0.12), rng.uniform(0.12, 0.5)
        right += [(0.5 + chest + reach, 0.08 + length), (0.5 + chest + reach - 0.05, 0.1 + length)]
    right += [(0.5 + chest, 0.22), (0.5 + waist, level), (0.5 + hem, 0.97)]
    lines = [([(0.5 - waist, level), (0.5 + waist, level)], 0.025, rng.uniform(0.4, 0.9))] if rng.random() < 0.4 else []
    return Mask().polygon(_mirror(right)), lines


def trouser(rng: Generator) -> Parts:
    """Two legs from a waistband."""
    waist, hip, ankle = rng.uniform(0.12, 0.19), rng.uniform(0.16, 0.22), rng.uniform(0.06, 0.1)
    crotch, gap = rng.uniform(0.28, 0.42), rng.uniform(0.015, 0.08)
    right = [(0.5 + waist, 0.03), (0.5 + hip, 0.28), (0.5 + gap + 2 * ankle, 0.98), (0.5 + gap, 0.98), (0.5, crotch)]
    lines = [([(0.5, 0.05), (0.5, crotch)], 0.012, 0.6), ([(0.5 - waist, 0.08), (0.5 + waist, 0.08)], 0.012, 0.7)]
    return Mask().polygon(right + [(1 - x, y) for x, y in reversed(right[:-1])]), lines


def sandal(rng: Generator) -> Parts:
    """A sole with straps and open gaps between them; flat or with a heel."""
    mask, ground = Mask(), rng.uniform(0.68, 0.78)
    heel = rng.uniform(0.0, 0.35) if rng.random() < 0.6 else 0.0
    thick = rng.uniform(0.03, 0.08)
    sole = [(0.04, ground), (0.3, ground), (0.6, ground - 0.6 * heel), (0.94, ground - heel)]
    mask.stroke(curve(sole), thick)
    if heel > 0.08:
        mask.polygon([(0.82, ground - heel), (0.95, ground - heel), (0.93, ground + 0.03), (0.88, ground + 0.03)])
    width = rng.uniform(0.02, 0.06)
    for _ in range(int(rng.integers(2, 5))):
        x = rng.uniform(0.12, 0.75)
        base = ground - max(0.0, (x - 0.3) / 0.64) * heel
        height, lean = rng.uniform(0.12, 0.3), rng.uniform(-0.05, 0.25)
        mask.stroke(curve([(x, base), (x + lean / 2, base - height), (x + lean + 0.08, base - 0.02)]), width)
    if rng.random() < 0.7:
        top = ground - heel - rng.uniform(0.15, 0.35)
        mask.stroke(curve([(0.92, ground - heel), (0.93, top), (0.7, top + 0.02), (0.66, ground - 0.6 * heel)]), width)
    return mask, []


def sneaker(rng: Generator) -> Parts:
    """A low shoe on a thick pale sole, toe to the left, with laces or stripes."""
    ground, top, collar = rng.uniform(0.68, 0.76), rng.uniform(0.34, 0.44), rng.uniform(0.5, 0.62)
    toe = ground - rng.uniform(0.12, 0.18)
    body = [
        (0.03, ground),
        (0.04, toe),
        (0.2, toe - 0.05),
        (collar, top + 0.04),
        (collar + 0.08, top),
        (0.8, top + 0.08),
        (0.92, top - 0.02),
        (0.97, top + 0.1),
        (0.96, ground),
    ]
    lines = [([(0.03, ground), (0.97, ground)], rng.uniform(0.04, 0.09), rng.choice([0.3, 1.5]))]
    for k in range(int(rng.integers(0, 4))):
        x = 0.32 + 0.09 * k
        lines.append(([(x, toe - 0.06 - 0.06 * k), (x + 0.08, toe + 0.02)], 0.018, rng.choice([0.4, 1.5])))
    if rng.random() < 0.5:
        x = rng.uniform(0.5, 0.65)
        lines.append((curve([(x, ground - 0.08), (x + 0.1, ground - 0.1), (x + 0.25, top + 0.1)]), 0.03, 1.6))
    return Mask().polygon(curve(body, 4)), lines


def ankle_boot(rng: Generator) -> Parts:
    """A shoe with a shaft that rises to the upper edge, often with a heel."""
    ground, top, front = rng.uniform(0.85, 0.92), rng.uniform(0.05, 0.2), rng.uniform(0.42, 0.55)
    heel = rng.uniform(0.0, 0.15)
    back = rng.uniform(0.88, 0.95)
    body = [
        (0.04, ground),
        (0.04, ground - 0.1),
        (0.2, ground - rng.uniform(0.18, 0.24)),
        (front - 0.04, ground - 0.32),
        (front, top),
        (back, top + rng.uniform(-0.03, 0.03)),
        (back, ground - heel),
        (back + 0.01, ground),
    ]
    mask = Mask().polygon(body)
    if heel > 0.05:
        mask.polygon([(0.45, ground + 0.01), (0.55, ground - heel), (0.74, ground - heel), (0.76, ground + 0.01)], 0.0)
    mask.stroke([(0.05, ground), (0.45, ground)], 0.03)
    lines = [([(0.04, ground), (0.45, ground)], 0.04, 0.4)]
    if rng.random() < 0.5:
        lines.append(([(front, top + 0.3), (back, top + 0.32)], rng.uniform(0.01, 0.04), 0.5))
    if rng.random() < 0.4:
        lines.append(([(front + 0.05, top), (front + 0.02, ground - 0.25)], 0.015, 1.5))
    return mask, lines


def bag(rng: Generator) -> Parts:
    """A box or a soft body, mostly with a handle above."""
    top, bottom = rng.uniform(0.3, 0.5), rng.uniform(0.82, 0.95)
    half, lean = rng.uniform(0.3, 0.46), rng.uniform(-0.08, 0.06)
    body = _mirror(
        [(0.5, top), (0.5 + half + lean, top), (0.5 + half, (top + bottom) / 2), (0.5 + half, bottom), (0.5, bottom)]
    )
    mask = Mask()
    if rng.random() < 0.8:
        reach, peak = half * rng.uniform(0.35, 0.9), rng.uniform(0.04, top - 0.12)
        arc = [
            (0.5 - reach, top + 0.03),
            (0.5 - 0.8 * reach, peak + 0.06),
            (0.5, peak),
            (0.5 + 0.8 * reach, peak + 0.06),
            (0.5 + reach, top + 0.03),
        ]
        mask.stroke(curve(arc), rng.uniform(0.02, 0.05))
    mask.polygon(body)
    lines = []
    if rng.random() < 0.6:
        y = rng.uniform(top + 0.1, top + 0.25)
        lines.append(([(0.5 - half, y), (0.5 + half, y)], rng.uniform(0.012, 0.03), rng.uniform(0.3, 0.7)))
    if rng.random() < 0.4:
        lines.append(([(0.48, top + 0.2), (0.52, top + 0.2)], 0.06, rng.choice([0.4, 1.5])))
    return mask, lines


GARMENTS = {
    "t-shirt": t_shirt,
    "trouser": trouser,
    "pullover": pullover,
    "dress": dress,
    "coat": coat,
    "sandal": sandal,
    "shirt": shirt,
    "sneaker": sneaker,
    "bag": bag,
    "ankle boot": ankle_boot,
}


def cloth(rng: Generator) -> np.ndarray:
    """Return the grey of a fabric, float32 (SIZE, SIZE): plain, striped, checked or printed, with folds."""
    y, x = grid(SIZE)
    grey = np.full((SIZE, SIZE), rng.uniform(0.3, 0.95), np.float32)
    grey = grey * (1 - rng.uniform(0.05, 0.45) * noise(rng, SIZE, rng.uniform(1.0, 2.2)))
    kind = rng.random()
    if kind < 0.15:
        grey = grey * (1 - rng.uniform(0.2, 0.6) * (np.sin(y * rng.uniform(20, 70)) > 0))
    elif kind < 0.22:
        grey = grey * (1 - rng.uniform(0.2, 0.5) * (np.sin(x * rng.uniform(25, 70)) > 0))
    elif kind < 0.28:
        step = rng.uniform(20, 45)
        grey = grey * (1 - 0.3 * (np.sin(x * step) > 0.3) - 0.3 * (np.sin(y * step) > 0.3))
    elif kind < 0.4:
        cx, cy, r = rng.uniform(0.4, 0.6), rng.uniform(0.3, 0.6), rng.uniform(0.05, 0.15)
        print_ = (np.abs(x - cx) < r) & (np.abs(y - cy) < r * rng.uniform(0.5, 1.5)) & (noise(rng, SIZE, 0.8) > 0.45)
        grey = np.where(print_, rng.uniform(0.1, 1.0), grey)
    return grey


def garment(rng: Generator, name: str) -> np.ndarray:
    """Return a garment in grey on black, float32 (SIZE, SIZE)."""
    mask, lines = GARMENTS[name](rng)
    ink = mask.array()
    grey = cloth(rng)
    for points, width, factor in lines:
        seam = Mask().stroke(points, width).array()
        grey = grey * (1 - seam * (1 - factor))
    inside = ndimage.gaussian_filter(ink, 3.0)
    grey = grey * (1 - rng.uniform(0, 0.5) * (1 - inside))  # rounder towards the outline
    image = np.clip(grey, 0, 1) * ink
    if rng.random() < 0.7:
        image = elastic(rng, image, rng.uniform(0.5, 2.0), smooth=14)
    if rng.random() < 0.2:
        image = image[:, ::-1]
    return np.ascontiguousarray(image, np.float32)
