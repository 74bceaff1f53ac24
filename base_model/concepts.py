"""What the pictures show and how captions name it: one table of concepts, grouped in families."""

import itertools
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from base_model import garments, glyphs, scenes, shapes, textures
from base_model.canvas import Generator

# Templates that fit every noun, so that the wording of a prompt matters little.
GENERAL = (
    "a photo of {}.",
    "a picture of {}.",
    "an image of {}.",
    "{}",
    "{}.",
    "a photo of the {}.",
    "a good photo of {}.",
    "a bad photo of {}.",
    "a close photograph of {}.",
    "a detail of a picture of {}.",
    "a small crop of {}.",
    "a small grey picture of {}.",
    'a picture of "{}".',
    "a blurry {}.",
    "a small photo of {}.",
    "a blurry photo of {}.",
    "a low resolution photo of {}.",
    "a black and white photo of {}.",
    "a close-up photo of {}.",
    "a cropped photo of {}.",
    "a bright photo of {}.",
    "a dark photo of {}.",
    "this is {}.",
    "this is a photo of {}.",
    "there is {} in the picture.",
    "a rendering of {}.",
    "a drawing of {}.",
    "a photograph of {}.",
    "a crop of {}.",
    "a picture that shows {}.",
    "an example of {}.",
    "a photo of one {}.",
    "a photo of a {}.",
    "a photo of an {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a {}.",
    "the {}",
)
DIGIT = (
    "a photo of the number {}.",
    'a photo of the number: "{}".',
    'the number "{}".',
    "a low resolution scan of the digit {}.",
    "a blurry handwritten {}.",
    "a picture of the handwritten digit {}.",
    "a photo of the digit {}.",
    "the digit {}",
    "the number {}",
    "digit {}",
    "number {}",
    "a handwritten {}.",
    "a handwritten digit {}.",
    "a scan of the digit {}.",
    "an image of the handwritten number {}.",
    "a written {}.",
    "a blurry scan of the number {}.",
    "the handwritten digit {}.",
    "a printed digit {}.",
    "a photo of the handwritten digit {}.",
)
LETTER = (
    "the letter {}",
    "a photo of the letter {}.",
    "a picture of the letter {}.",
    "a handwritten letter {}.",
    "letter {}",
)
GARMENT = (
    "a photo of a {}, a type of clothing.",
    "a product photo of a {}.",
    "a grey photo of a {}.",
    "clothing: {}",
    "a picture of a {} from a catalogue.",
    "a photo of a piece of clothing: {}.",
    "a fashion photo of a {}.",
    "a photo of {}, an article of clothing.",
    "an item of clothing: a {}.",
    "a photo of the garment {}.",
)
TEXTURE = (
    "a photo of {} texture.",
    "a texture of {}.",
    "a close-up of {}.",
    "a surface of {}.",
    "the texture of {}.",
    "a photo of a {} texture.",
    "a pattern of {}.",
    "a {} surface.",
    "a photo of the surface of {}.",
    "{} texture",
)
SCENE = (
    "a crop of a photo of {}.",
    "a patch of {}.",
    "a scientific image of {}.",
    "a detail of {}.",
    "part of a photo of {}.",
)
FACE = (
    "a grey photo of {}.",
    "a small patch of {}.",
    "a photo that shows {}.",
    "a cropped picture of {}.",
    "a patch with {}.",
)

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Letters that look like digits are left out: as negatives they would contradict the digits.
LETTERS = "".join(c for c in string.ascii_letters if c not in "OoIilSsZzBbGgQqDjTLAY")
GARMENT_NAMES = {
    "t-shirt": ("t-shirt", "t-shirt/top", "t-shirt or top", "tee shirt", "top", "short-sleeved t-shirt"),
    "trouser": ("trouser", "trousers", "pair of trousers", "pants"),
    "pullover": ("pullover", "sweater", "jumper", "long-sleeved pullover"),
    "dress": ("dress", "gown", "long dress"),
    "coat": ("coat", "jacket", "open coat", "winter coat"),
    "sandal": ("sandal", "sandals", "open sandal with straps"),
    "shirt": ("shirt", "buttoned shirt", "shirt with a collar", "blouse"),
    "sneaker": ("sneaker", "sneakers", "trainer", "sports shoe", "running shoe"),
    "bag": ("bag", "handbag", "purse", "bag with a handle"),
    "ankle boot": ("ankle boot", "boot", "ankle boots", "high boot"),
}
TEXTURE_NAMES = {
    "brick wall": ("brick wall", "a brick wall", "bricks", "brick", "a wall of bricks"),
    "grass": ("grass", "a lawn", "blades of grass", "green grass", "a meadow"),
    "gravel": ("gravel", "pebbles", "small stones", "a gravel path", "stones"),
}
SCENE_NAMES = {
    "stars and galaxies": (
        "stars and galaxies",
        "stars",
        "galaxies",
        "the night sky",
        "a deep field of galaxies",
        "space",
    ),
    "printed text": (
        "printed text",
        "text",
        "a page of text",
        "lines of printed text",
        "a printed page",
        "words on paper",
    ),
    "coins": ("coins", "a coin", "old coins", "coins on a dark ground"),
    "a retina": ("a retina", "the retina", "retina", "the back of an eye", "blood vessels in a retina", "a fundus"),
    "the moon": ("the moon", "moon", "craters", "the surface of the moon", "a crater on the moon"),
    "stained tissue": (
        "stained tissue",
        "tissue",
        "cells",
        "stained cells",
        "tissue under a microscope",
        "cells in stained tissue",
    ),
    "cat fur": ("a cat", "cat", "cat fur", "fur", "the fur of a cat", "animal fur", "a furry animal"),
    "a motorcycle": ("a motorcycle", "motorcycle", "a motorbike", "part of a motorcycle", "an engine", "a machine"),
}
FACE_NAMES = {
    "face": ("a face", "face", "a human face", "a person's face", "a person", "the face of a person", "a portrait"),
    "background": (
        "background",
        "the background",
        "a background",
        "no face",
        "a patch of background",
        "something without a face",
        "a background patch",
        "plain background",
    ),
}

# How often each family is drawn; within a family all concepts are equally likely.
WEIGHTS = {"digit": 0.34, "letter": 0.02, "garment": 0.2, "texture": 0.18, "scene": 0.15, "face": 0.06, "shape": 0.05}


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn and named.

    Attributes:
        name: Unique key; two samples of one concept are positives of each other.
        family: Key of `WEIGHTS`.
        phrases: Nouns for it, put into the templates.
        templates: Templates of its family, used beside `GENERAL`.
        render: Draws it: a mask (H, W) or an image (H, W, 3), float32 in about [0, 1].
        mirrors: Whether a left-right mirrored picture still shows it.
    """

    name: str
    family: str
    phrases: tuple[str, ...]
    templates: tuple[str, ...]
    render: Callable[[Generator], np.ndarray]
    mirrors: bool = True

    def caption(self, rng: Generator) -> str:
        """Return a caption: a phrase of the concept in a template of the family or a general one."""
        phrase = self.phrases[rng.integers(len(self.phrases))]
        templates = self.templates if self.templates and rng.random() < 0.5 else GENERAL
        return templates[rng.integers(len(templates))].format(phrase)


def _shapes() -> list[Concept]:
    concepts = []
    for shape, colour in itertools.product(shapes.SHAPES, shapes.COLOURS):
        name = f"{colour} {shape}"
        phrases = (name, f"a {name}", f"a {shape} in {colour}")
        concepts.append(Concept(name, "shape", phrases, (), partial(shapes.single, shape=shape, colour=colour)))
    for shape, (count, word) in itertools.product(shapes.SHAPES, enumerate(("two", "three", "four"), start=2)):
        name = f"{word} {shape}{'es' if shape == 'cross' else 's'}"
        concepts.append(Concept(name, "shape", (name,), (), partial(shapes.several, shape=shape, count=count)))
    for first, second in itertools.permutations(("circle", "square", "triangle", "cross", "star"), 2):
        for relation in ("above", "left of"):
            name = f"a {first} {relation} a {second}"
            render = partial(shapes.pair, first=first, second=second, relation=relation)
            concepts.append(Concept(name, "shape", (name,), (), render, mirrors=relation == "above"))
    return concepts


@cache
def all_concepts() -> tuple[Concept, ...]:
    """Return every concept, in a fixed order; a sample names its concept by the position here."""
    concepts = [
        Concept(
            f"digit {value}", "digit", (word, str(value), word), DIGIT, partial(glyphs.glyph, text=str(value)), False
        )
        for value, word in enumerate(NUMBERS)
    ]
    concepts += [
        Concept(
            f"letter {c}",
            "letter",
            (c, f"{'uppercase' if c.isupper() else 'lowercase'} {c}"),
            LETTER,
            partial(glyphs.glyph, text=c),
            False,
        )
        for c in LETTERS
    ]
    concepts += [
        Concept(name, "garment", (name, name, *phrases), GARMENT, partial(garments.garment, name=name))
        for name, phrases in GARMENT_NAMES.items()
    ]
    # The three textures with most look-alikes are drawn more often than the rest.
    for name in textures.TEXTURES:
        phrases = TEXTURE_NAMES.get(name, (name,))
        concepts.append(Concept(name, "texture", phrases, TEXTURE, partial(textures.texture, name=name)))
    concepts += [Concept(name, "scene", phrases, SCENE, scenes.SCENES[name]) for name, phrases in SCENE_NAMES.items()]
    concepts += [Concept(name, "face", phrases, FACE, getattr(scenes, name)) for name, phrases in FACE_NAMES.items()]
    return (*concepts, *_shapes())


@cache
def concept_odds() -> np.ndarray:
    """Return the probability of each concept, float64 (concepts,), summing to 1."""
    concepts = all_concepts()
    emphasis = {"brick wall": 6.0, "grass": 6.0, "gravel": 6.0}
    odds = np.array([emphasis.get(c.name, 1.0) for c in concepts])
    for family, weight in WEIGHTS.items():
        members = np.array([c.family == family for c in concepts])
        odds[members] *= weight / odds[members].sum()
    return odds / odds.sum()


def every_caption() -> list[str]:
    """Return every caption that `Concept.caption` can give, sorted: the text the tokenizer is trained on."""
    captions = set()
    for concept in all_concepts():
        for phrase, template in itertools.product(concept.phrases, (*GENERAL, *concept.templates)):
            captions.add(template.format(phrase))
    return sorted(captions)
