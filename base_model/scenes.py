"""Simple scenes: sky, print, coins, retina, moon, tissue, fur, faces; each float32 (size, size, 3)."""

import numpy as np
from scipy import ndimage

from base_model.canvas import SIZE, TEXTURE_SIZE, Generator, Mask, affine, blend, curve, elastic, grid, noise, tint
from base_model.glyphs import font_files, load_font
from base_model.textures import TEXTURES, texture, voronoi

GREY = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def stars(rng: Generator) -> np.ndarray:
    """Points and small tilted galaxies, some coloured, on a nearly black sky."""
    y, x = grid(TEXTURE_SIZE)
    image = np.full((TEXTURE_SIZE, TEXTURE_SIZE, 3), rng.uniform(0.01, 0.06), np.float32)
    image += rng.uniform(0, 0.06) * noise(rng, power=1.2)[..., None]
    for _ in range(int(rng.integers(8, 60))):
        cy, cx, angle = rng.random(), rng.random(), rng.uniform(0, np.pi)
        radius = np.exp(rng.uniform(np.log(0.006), np.log(0.05)))
        long = radius * rng.uniform(1, 3.5) if radius > 0.015 else radius
        u = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) / long
        v = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) / radius
        tone = np.clip(rng.normal([0.95, 0.85, 0.75], 0.15), 0.3, 1)
        image += (rng.uniform(0.3, 1.2) * np.exp(-np.sqrt(u * u + v * v) * 1.2))[..., None] * tone
    return image


def print_lines(rng: Generator) -> np.ndarray:
    """Lines of printed text, dark on paper, unevenly lit."""
    mask = Mask()
    font = load_font(font_files()[rng.integers(len(font_files()))], int(rng.integers(11, 34)))
    letters = np.array(list("eeeetttaaaooiinnsshhrrddlluucmfwypvbgk,.  ABCDEFGHIMNOPRSTW"))
    top, step = rng.uniform(-20, 4), font.size * rng.uniform(1.1, 1.6)
    while top < SIZE:
        words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(7)]
        mask.draw.text((rng.uniform(-20, 2), top), " ".join(words), 255, font)
        top += step
    ink = affine(mask.array(), angle=rng.normal(0, 0.06), mode="nearest")
    paper = tint(0.6 + 0.4 * noise(rng, SIZE, 2.0) * rng.uniform(0, 1), (0, 0, 0), rng.uniform(0.75, 1.0, 3))
    if rng.random() < 0.6:
        paper = np.repeat(paper.mean(-1, keepdims=True), 3, axis=-1)
    return blend(ink * rng.uniform(0.7, 1.0), paper, np.full(3, rng.uniform(0, 0.25), np.float32))


def coins(rng: Generator) -> np.ndarray:
    """Pale discs with rims and relief on a dark ground."""
    y, x = grid(TEXTURE_SIZE)
    image = np.full((TEXTURE_SIZE, TEXTURE_SIZE), rng.uniform(0.1, 0.4), np.float32) + 0.15 * noise(rng, power=1.5)
    base, count = rng.uniform(0.12, 0.55), int(rng.integers(1, 8))
    for _ in range(count):
        cy, cx, r = rng.uniform(0, 1), rng.uniform(0, 1), base * rng.uniform(0.8, 1.1)
        distance = np.hypot((y - cy) * rng.uniform(0.95, 1.05), x - cx)
        relief = ndimage.gaussian_filter(rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE)), rng.uniform(1, 2.5))
        face = rng.uniform(0.45, 0.8) + relief * rng.uniform(0.15, 0.5) + 0.15 * (np.abs(distance - 0.9 * r) < 0.05 * r)
        inside = np.clip((r - distance) * TEXTURE_SIZE, 0, 1)
        image = image * (1 - inside) + face * inside
    copper = rng.random() < 0.25
    return tint(image, (0.05, 0.02, 0.0) if copper else GREY[0], (1.0, 0.8, 0.5) if copper else GREY[1])


def retina(rng: Generator) -> np.ndarray:
    """Dark branching vessels on orange-red, sometimes a bright disc or the round dark edge."""
    y, x = grid(SIZE)
    ground = tint(
        noise(rng, SIZE, 1.8),
        rng.uniform([0.4, 0.08, 0], [0.7, 0.25, 0.08]),
        rng.uniform([0.75, 0.3, 0.08], [1, 0.6, 0.35]),
    )
    if rng.random() < 0.35:
        cy, cx, r = rng.random(), rng.random(), rng.uniform(0.08, 0.25)
        disc = np.clip((r - np.hypot(y - cy, x - cx)) / r * 2, 0, 1)
        ground = blend(disc, ground, np.array([1, 0.85, 0.55], np.float32))
    mask = Mask()

    def grow(x0: float, y0: float, angle: float, width: float, depth: int) -> None:
        points = [(x0, y0)]
        for _ in range(int(rng.integers(3, 7))):
            angle += rng.normal(0, 0.3)
            x0, y0 = x0 + 0.1 * np.sin(angle), y0 - 0.1 * np.cos(angle)
            points.append((x0, y0))
        mask.stroke(curve(points, 4), width)
        if depth > 0:
            for side in (-1, 1):
                grow(x0, y0, angle + side * rng.uniform(0.3, 0.9), width * 0.65, depth - 1)

    for _ in range(int(rng.integers(1, 4))):
        start, edge = rng.random(), rng.integers(4)
        x0, y0 = [(start, 0.0), (1.0, start), (start, 1.0), (0.0, start)][edge]
        grow(x0, y0, np.pi + edge * np.pi / 2 + rng.normal(0, 0.5), rng.uniform(0.02, 0.06), 3)
    vessels = ndimage.gaussian_filter(mask.array(), 0.8) * rng.uniform(0.4, 0.8)
    image = blend(vessels, ground, ground * np.array([0.6, 0.35, 0.4], np.float32))
    if rng.random() < 0.3:
        cy, cx = rng.choice([-0.2, 1.2]), rng.uniform(0, 1)
        image = image * np.clip((1.0 - np.hypot(y - cy, x - cx)) * 20, 0.02, 1)[..., None]
    return image


def moon(rng: Generator) -> np.ndarray:
    """Grey ground with craters: bowls lit from one side; dark plains between them."""
    y, x = grid(TEXTURE_SIZE)
    height = 0.5 * noise(rng, power=rng.uniform(1.6, 2.2))
    for _ in range(int(rng.integers(2, 25))):
        cy, cx, r = rng.random(), rng.random(), np.exp(rng.uniform(np.log(0.02), np.log(0.2)))
        distance = np.hypot(y - cy, x - cx) / r
        height = height + r * 2 * (np.exp(-((distance - 1) ** 2) * 12) - 0.8 * np.exp(-(distance**2) * 2))
    angle = rng.uniform(0, 2 * np.pi)
    dy, dx = np.gradient(height * TEXTURE_SIZE)
    lit = np.cos(angle) * dx + np.sin(angle) * dy
    tone = rng.uniform(0.3, 0.6) + 0.25 * (noise(rng, power=2.2) - 0.5)
    relief = ndimage.gaussian_filter(lit, rng.uniform(0.0, 1.5)) * np.exp(rng.uniform(np.log(0.02), np.log(0.35)))
    return tint(np.clip(tone + relief, 0, 1), *GREY)


def tissue(rng: Generator) -> np.ndarray:
    """Cells with dark nuclei and pale gaps, stained brown and blue, or pink and violet."""
    index, near, _ = voronoi(rng, int(rng.integers(20, 140)))
    brown = rng.random() < 0.65
    field = noise(rng, power=1.7)
    first, second = ([0.6, 0.38, 0.22], [0.66, 0.68, 0.82]) if brown else ([0.85, 0.45, 0.65], [0.6, 0.4, 0.75])
    image = tint(
        np.clip((field - 0.5) * 4 + 0.5, 0, 1),
        np.add(first, rng.normal(0, 0.05, 3)),
        np.add(second, rng.normal(0, 0.05, 3)),
    )
    gaps = np.clip((noise(rng, power=1.6) - rng.uniform(0.6, 0.8)) * 12, 0, 1)
    image = blend(gaps, image, np.array([0.93, 0.92, 0.93], np.float32))
    radius = rng.uniform(0.015, 0.045)
    nuclei = np.clip((radius - near) * 60, 0, 1) * (rng.random(200) < 0.8)[index]
    dark = [0.35, 0.4, 0.62] if brown and rng.random() < 0.7 else [0.32, 0.18, 0.2]
    image = blend(ndimage.gaussian_filter(nuclei, 0.5) * rng.uniform(0.5, 0.9), image, np.asarray(dark, np.float32))
    return image + 0.15 * (noise(rng, power=0.5)[..., None] - 0.5)


def fur(rng: Generator) -> np.ndarray:
    """Fine parallel hairs that follow slow bands of light and dark, in an animal's colours."""
    y, x = grid(TEXTURE_SIZE)
    angle = rng.uniform(0, np.pi)
    bend = noise(rng, power=2.2) * rng.uniform(0.5, 2.5) + angle
    along, across = np.cos(angle), np.sin(angle)
    hairs = noise(rng, power=0.3)
    length = rng.uniform(3, 8)
    total, rows, columns = np.zeros_like(hairs), np.arange(TEXTURE_SIZE)[:, None], np.arange(TEXTURE_SIZE)[None]
    for step in np.linspace(-length, length, 11):
        total += hairs[
            (rows + np.round(step * np.sin(bend)).astype(int)) % TEXTURE_SIZE,
            (columns + np.round(step * np.cos(bend)).astype(int)) % TEXTURE_SIZE,
        ]
    strands = (total - total.mean()) / (total.std() + 1e-6)
    bands = np.sin((x * across - y * along) * rng.uniform(3, 25) + 4 * noise(rng, power=2.0))
    tone = (
        0.5 + rng.uniform(0.07, 0.15) * strands + rng.uniform(0.05, 0.25) * bands + 0.3 * (noise(rng, power=2.0) - 0.5)
    )
    light = rng.uniform([0.75, 0.55, 0.35], [1.0, 0.85, 0.75])
    image = tint(np.clip(tone, 0, 1), rng.uniform([0.1, 0.05, 0.0], [0.35, 0.22, 0.15]), light)
    return image.mean(-1, keepdims=True).repeat(3, -1) if rng.random() < 0.2 else image


def motorcycle(rng: Generator) -> np.ndarray:
    """Part of a machine in a workshop: wheels with spokes, pipes, plates and lamps over a cluttered room."""
    image = tint(noise(rng, SIZE, 1.6), rng.uniform(0.0, 0.3, 3), rng.uniform(0.4, 0.9, 3))
    for _ in range(int(rng.integers(1, 5))):
        corners = [tuple(rng.uniform(-0.2, 1.2, 2)) for _ in range(4)]
        image = blend(Mask().polygon(corners).array() * rng.uniform(0.4, 1), image, rng.uniform(0, 0.9, 3))
    for _ in range(int(rng.integers(1, 3))):
        x, y, r = rng.uniform(0.0, 1.0), rng.uniform(0.3, 1.0), rng.uniform(0.2, 0.5)
        tyre = Mask().ellipse(x, y, r, r).ellipse(x, y, 0.78 * r, 0.78 * r, 0.0).array()
        image = blend(tyre, image, np.full(3, rng.uniform(0.02, 0.18)))
        spokes = Mask()
        start, count = rng.uniform(0, 1), int(rng.integers(5, 16))
        for angle in start + np.arange(count) * 2 * np.pi / count:
            spokes.stroke([(x, y), (x + 0.76 * r * np.sin(angle), y - 0.76 * r * np.cos(angle))], 0.012)
        spokes.ellipse(x, y, 0.15 * r, 0.15 * r)
        image = blend(spokes.array() * 0.9, image, np.full(3, rng.uniform(0.5, 0.95)))
    for _ in range(int(rng.integers(2, 7))):
        points = np.cumsum(rng.normal(0, 0.25, (3, 2)), axis=0) + rng.uniform(0.1, 0.9, 2)
        width, shine = rng.uniform(0.02, 0.08), rng.uniform(0.4, 1.0)
        image = blend(Mask().stroke(curve(points), width).array(), image, np.full(3, rng.uniform(0.05, 0.4)))
        image = blend(Mask().stroke(curve(points - 0.15 * width), 0.4 * width).array(), image, np.full(3, shine))
    if rng.random() < 0.7:
        x, y, r = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.7), rng.uniform(0.08, 0.25)
        paint = rng.uniform([0.3, 0, 0], [0.9, 0.3, 0.3]) if rng.random() < 0.5 else rng.uniform(0, 0.8, 3)
        image = blend(Mask().ellipse(x, y, r * rng.uniform(1, 2), r).array(), image, paint)
        image = blend(Mask().ellipse(x - 0.3 * r, y - 0.4 * r, 0.3 * r, 0.15 * r).array() * 0.8, image, np.ones(3))
    return image


def face(rng: Generator) -> np.ndarray:
    """A shaded oval with hair, brows, eyes, nose and mouth, cut close, mostly grey."""
    y, x = grid(SIZE)
    skin, light = rng.uniform(0.45, 0.85), rng.normal(0, 0.5, 2)
    cx, cy = rng.normal(0.5, 0.03), rng.normal(0.52, 0.03)
    rx, ry = rng.uniform(0.34, 0.5), rng.uniform(0.46, 0.62)
    back = np.full((SIZE, SIZE), rng.random(), np.float32) + 0.3 * (noise(rng, SIZE, 1.7) - 0.5)
    hair_tone = rng.uniform(0.03, 0.5)
    hair = Mask().ellipse(cx, cy - 0.08, rx * rng.uniform(1.05, 1.3), ry * rng.uniform(1.0, 1.15)).array()
    image = back * (1 - hair) + hair * (hair_tone + 0.15 * noise(rng, SIZE, 1.0))
    oval = Mask().ellipse(cx, cy + 0.04, rx, ry).array()
    tone = skin + 0.25 * (light[0] * (x - cx) + light[1] * (y - cy)) - 0.35 * ((x - cx) / rx) ** 2 * 0.6
    image = image * (1 - oval) + tone * oval
    fringe = rng.uniform(0.02, 0.22)
    image = np.where((oval > 0.5) & (y < cy - ry + 0.04 + fringe), hair_tone, image)
    eye_y, apart, size = cy - rng.uniform(0.06, 0.13), rng.uniform(0.15, 0.2), rng.uniform(0.035, 0.06)
    marks = Mask()
    for side in (-1, 1):
        ex = cx + side * apart
        marks.ellipse(ex, eye_y, size * 1.7, size * 0.9, rng.uniform(0.5, 0.9)).ellipse(
            ex, eye_y, size * 0.7, size * 0.7, 1.0
        )
        marks.stroke(
            [(ex - 0.08, eye_y - 0.07), (ex, eye_y - 0.095), (ex + 0.08, eye_y - 0.07)], 0.025, rng.uniform(0.4, 0.9)
        )
        marks.ellipse(cx + side * 0.035, cy + 0.13, 0.018, 0.014, rng.uniform(0.4, 0.8))
        marks.stroke([(cx + side * 0.05, eye_y + 0.05), (cx + side * 0.06, cy + 0.12)], 0.02, rng.uniform(0.05, 0.35))
    mouth_y, half, smile = cy + rng.uniform(0.22, 0.3), rng.uniform(0.09, 0.17), rng.normal(0.0, 0.03)
    marks.stroke(
        curve([(cx - half, mouth_y - smile), (cx, mouth_y + smile), (cx + half, mouth_y - smile)]),
        rng.uniform(0.02, 0.05),
        0.8,
    )
    if rng.random() < 0.35:
        marks.stroke(curve([(cx - half * 0.7, mouth_y), (cx, mouth_y + 0.012), (cx + half * 0.7, mouth_y)]), 0.02, 0.0)
    dark = ndimage.gaussian_filter(marks.array(), 1.2) * oval
    image = image * (1 - rng.uniform(0.55, 0.9) * dark)
    if rng.random() < 0.25:
        beard = np.clip((y - mouth_y + 0.12) * 6, 0, 1) * oval * (np.abs(y - mouth_y) > 0.03)
        image = image * (1 - beard * rng.uniform(0.2, 0.6))
    image = elastic(rng, image.astype(np.float32), rng.uniform(0.2, 1.5), smooth=14)
    if rng.random() < 0.2:
        return tint(np.clip(image, 0, 1), (0.1, 0.03, 0.0), (1.0, 0.85, 0.72))
    return tint(np.clip(image, 0, 1), *GREY)


def background(rng: Generator) -> np.ndarray:
    """A patch from beside a face: gradients, blurred clutter, edges, a strand of hair, part of an outline."""
    y, x = grid(SIZE)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
    image = (
        rng.uniform(0.1, 0.9)
        + rng.uniform(-0.6, 0.6) * ramp
        + rng.uniform(0, 0.6) * (noise(rng, SIZE, rng.uniform(1.2, 2.4)) - 0.5)
    )
    for _ in range(int(rng.integers(0, 4))):
        mask = Mask()
        if rng.random() < 0.5:
            cx, cy = rng.choice([-0.2, 1.2]), rng.uniform(-0.2, 1.2)
            mask.ellipse(cx, cy, rng.uniform(0.3, 0.9), rng.uniform(0.3, 0.9))
        else:
            mask.polygon([tuple(rng.uniform(-0.5, 1.5, 2)) for _ in range(4)])
        edge = ndimage.gaussian_filter(mask.array(), rng.uniform(0.5, 5))
        image = image * (1 - edge) + edge * rng.uniform(0, 1)
    if rng.random() < 0.15:
        part = texture(rng, list(TEXTURES)[rng.integers(len(TEXTURES))]).mean(-1)
        image = 0.5 * image + 0.5 * ndimage.zoom(part, SIZE / TEXTURE_SIZE, order=1)
    if rng.random() < 0.2:
        return tint(np.clip(image, 0, 1), rng.uniform(0, 0.3, 3), rng.uniform(0.6, 1.0, 3))
    return tint(np.clip(image, 0, 1), *GREY)


SCENES = {
    "stars and galaxies": stars,
    "printed text": print_lines,
    "coins": coins,
    "a retina": retina,
    "the moon": moon,
    "stained tissue": tissue,
    "cat fur": fur,
    "a motorcycle": motorcycle,
}
