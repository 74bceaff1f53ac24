import numpy as np
import pytest

from base_model.concepts import GENERAL, WEIGHTS, all_concepts, concept_odds, every_caption
from base_model.pool import render_concept, render_pool, render_sample


def test_a_sample_depends_on_seed_and_index_alone():
    alone = render_sample(3, 7)[0]
    pool = render_pool(3, 8, workers=1)
    np.testing.assert_array_equal(pool.images[7], alone)
    np.testing.assert_array_equal(render_pool(3, 8, workers=1, chunk=3).images, pool.images)
    assert not np.array_equal(render_pool(4, 8, workers=1).images, pool.images)


def test_every_concept_renders_a_picture_that_is_not_empty():
    for position, concept in enumerate(all_concepts()):
        image = render_concept(np.random.default_rng(position), position)
        assert image.shape == (3, 32, 32) and image.dtype == np.uint8, concept.name
        assert image.std() > 2, concept.name


def test_concepts_have_unique_names_and_odds_follow_the_families():
    concepts = all_concepts()
    assert len({c.name for c in concepts}) == len(concepts)
    odds = concept_odds()
    for family, weight in WEIGHTS.items():
        share = sum(p for p, c in zip(odds, concepts, strict=True) if c.family == family)
        assert share == pytest.approx(weight / sum(WEIGHTS.values()))


def test_captions_name_the_concept():
    rng = np.random.default_rng(0)
    known = set(every_caption())
    for concept in all_concepts():
        caption = concept.caption(rng)
        assert caption in known
        assert any(phrase in caption for phrase in concept.phrases)
    assert all(template.count("{}") == 1 for template in GENERAL)
