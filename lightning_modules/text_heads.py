"""Class vectors from prompts: the frozen classification heads of CLIP.

A class vector is the mean of the normalised embeddings of its prompts, normalised again
(Radford et al., 2021, arXiv 2103.00020, section 3.1.4).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_modules.vector_cache import cached_vectors

TextEncoder = Callable[[list[str]], Tensor]


def class_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Fill every template with every class name.

    >>> class_prompts(["cat", "dog"], ["a photo of a {}."])
    [['a photo of a cat.'], ['a photo of a dog.']]
    """
    return [[template.replace("{}", name) for template in templates] for name in class_names]


def class_vectors(prompts: Sequence[Sequence[str]], encode: TextEncoder, batch_size: int = 256) -> Tensor:
    """Return one unit vector a class.

    Args:
        prompts: for each of C classes, its prompts.
        encode: maps n texts to embeddings (n, d).
        batch_size: texts encoded at a time.

    Returns:
        (C, d) float32, rows of norm one.
    """
    texts = list(dict.fromkeys(text for group in prompts for text in group))
    chunks = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
    embeddings = normalize(torch.cat([encode(chunk).float() for chunk in chunks]), dim=-1)
    row = {text: index for index, text in enumerate(texts)}
    means = torch.stack([embeddings[[row[text] for text in group]].mean(0) for group in prompts])
    return normalize(means, dim=-1)


def cached_class_vectors(
    prompts: Sequence[Sequence[str]], model_key: str, make_encoder: Callable[[], TextEncoder]
) -> Tensor:
    """Return `class_vectors`, from disk where the same model has met the same prompts before.

    Args:
        prompts: for each class, its prompts.
        model_key: hash of the text tower and its tokenizer.
        make_encoder: loads the text tower; called only when the vectors are not cached.
    """
    return cached_vectors([model_key, prompts], lambda: class_vectors(prompts, make_encoder()))
