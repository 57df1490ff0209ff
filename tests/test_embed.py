"""Embeddings, near-duplicates and clusters: unit rows that depend on their text alone, and the rules to the letter."""

import math
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialoom.embed import CachedEmbedder, Ngrams, cosine, greedy_distinct, leader_clusters, load_embedder, nearest
from dialoom.errors import ConfigError, ModelError


def at_angles(*degrees):
    """2-d unit vectors."""
    turned = np.deg2rad(degrees)
    return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)


def on_sphere(count, dimensions, seed):
    rows = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def product(left, right):
    """The cosine that decides: double precision, six decimals."""
    return round(math.fsum(float(a) * float(b) for a, b in zip(left, right, strict=True)), 6)


def clusters_by_loop(rows, threshold):
    """Leader clustering as IDEAS states it, one comparison after the other."""
    leader_of, score = [-1] * len(rows), [-math.inf] * len(rows)
    for leader in range(len(rows)):
        if leader_of[leader] >= 0:
            continue
        cosines = [product(rows[leader], row) for row in rows]
        for item in sorted(range(len(rows)), key=lambda at: -cosines[at]):
            if cosines[item] > threshold and (leader_of[item] < 0 or score[item] < cosines[item]):
                leader_of[item], score[item] = leader, cosines[item]
    return leader_of


def distinct_by_loop(rows, kept, threshold):
    pool, joins = list(kept), []
    for row in rows:
        joins.append(all(product(row, other) <= threshold for other in pool))
        pool += [row] if joins[-1] else []
    return joins


# ------------------------------------------------------------------------------------------------ embedders


TEXTS = ["She keeps hens.", "", "a", "  She   KEEPS hens. ", "Ünïcode 字 🙂", "she keeps bees and sells honey",
         "\ud800"]


def test_ngram_rows_have_length_one_and_depend_on_their_text_alone():
    embedder = Ngrams()
    together = embedder.encode(TEXTS * 200)  # more than one chunk
    assert together.dtype == np.float32 and together.shape == (1400, 2048)
    np.testing.assert_allclose((together.astype(float) ** 2).sum(axis=1), 1, atol=1e-6)
    for at, text in enumerate(TEXTS):
        assert np.array_equal(embedder.encode([text])[0], together[at])
    assert embedder.encode([]).shape == (0, 2048)


def test_ngrams_see_likeness_and_neither_case_nor_spaces():
    hens, empty, _, same, other, bees, _ = Ngrams().encode(TEXTS)
    assert np.array_equal(hens, same)
    assert hens @ bees > 0.3 > abs(hens @ other) and abs(hens @ empty) < 0.1


def test_a_repeated_ngram_counts_less_each_time():
    """ "aaaa" holds a three times over two: weights 1 + log 3 for `aa`, 1 for ` a` and `a `."""
    one, other = Ngrams(2, 2, 1 << 20).encode(["aaaa", "aa"])  # `aa` once in the second
    inner = 1 + math.log(3)
    assert one @ other == pytest.approx((inner + 2) / math.sqrt((inner**2 + 2) * 3), abs=1e-6)


def test_the_hash_is_the_same_on_every_machine():
    row = Ngrams(3, 3, 16).encode(["cat"])[0]  # ` ca`, `cat`, `at `: each one bucket
    assert {int(at): round(float(row[at]), 4) for at in np.flatnonzero(row)} == {6: -0.5774, 14: -0.5774, 15: 0.5774}


def test_twenty_thousand_short_texts_take_seconds():
    import time

    texts = [f"ask for an example of number {at} and compare it" for at in range(20_000)]
    start = time.process_time()
    Ngrams().encode(texts)
    assert time.process_time() - start < 10  # about one second on the machine it was written on


@pytest.mark.parametrize(("spec", "name"), [("ngrams", "ngrams:3-5/2048"), ("ngrams:2-4", "ngrams:2-4/2048")])
def test_an_embedder_is_named_with_its_settings(spec, name):
    assert load_embedder(spec).name == name


@pytest.mark.parametrize("spec", ["ngram", "", "st:", "hidden:", "ngrams:3", "ngrams:", "ngrams:5-3", "ngrams:0-2"])
def test_a_name_that_means_no_embedding_is_refused(spec):
    with pytest.raises(ConfigError, match="grams"):
        load_embedder(spec)


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModelError, match="pip install sentence-transformers"):
        load_embedder("st:any")


def test_sentence_transformers_are_asked_by_name_and_made_unit(monkeypatch):
    asked = []

    class Fake:
        def __init__(self, name, device, trust_remote_code, model_kwargs):
            asked.append(name)
            assert trust_remote_code is False and model_kwargs == {"use_safetensors": True}

        def encode(self, texts, **_):
            return np.array([[3.0, 4.0]] * len(texts))

    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=Fake))
    embedder = load_embedder("st:small")
    assert embedder.name == "st:small" and asked == ["small"]
    np.testing.assert_allclose(embedder.encode(["a", "b"]), [[0.6, 0.8]] * 2, atol=1e-6)
    assert len(embedder.encode([])) == 0


def test_hidden_states_are_unit_rows_of_each_text_alone():
    from dialoom.models.hidden import HiddenStates
    from tests.tiny import tiny_model

    model = tiny_model()
    bare = HiddenStates(model)
    texts = ["She keeps hens.", "Rome", "", "which river flows " * 80]  # the last one is beyond the context
    rows = bare.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(rows[1], bare.encode(["Rome"])[0], atol=1e-5)
    framed = HiddenStates(model, frame=lambda text: [{"role": "user", "content": f"Sum up: {text}"}])
    assert not np.allclose(framed.encode(texts[:1]), rows[:1], atol=1e-2) and framed.name != bare.name
    np.testing.assert_allclose(framed.encode(texts[:2])[1], framed.encode(["Rome"])[0], atol=1e-5)


def test_hidden_states_of_an_endpoint_are_refused():
    with pytest.raises(ModelError, match="no hidden states"):
        load_embedder("hidden:openai:any")


class Counting:
    """An embedder that keeps what it was asked."""

    name = "counting"

    def __init__(self):
        self.asked = []

    def encode(self, texts):
        self.asked.append(list(texts))
        return np.array([[1.0, 0.0] if "a" in text else [0.0, 1.0] for text in texts],
                        dtype=np.float32).reshape(-1, 2)


def test_a_cached_embedder_encodes_each_distinct_text_once():
    below = Counting()
    cached = CachedEmbedder(below)
    assert cached.encode(["a", "b", "a"]).tolist() == [[1, 0], [0, 1], [1, 0]]
    assert cached.encode(["b", "c"]).tolist() == [[0, 1], [0, 1]]
    cached.encode(["a"])
    assert below.asked == [["a", "b"], ["c"]]
    assert (cached.encoded, cached.calls, cached.name) == (3, 2, "counting")
    assert cached.encode([]).shape == (0, 2)


# ------------------------------------------------------------------------------------------- near-duplicates


def test_an_equal_text_is_refused_and_one_exactly_at_the_threshold_joins():
    pool = np.array([[1.0, 0.0]], dtype=np.float32)
    new = np.array([[1.0, 0.0], [0.6, 0.8], [0.600002, 0.8]], dtype=np.float32)
    assert greedy_distinct(new[:1], pool, 0.6).tolist() == [False]
    assert greedy_distinct(new[1:2], pool, 0.6).tolist() == [True]
    assert greedy_distinct(new[2:], pool, 0.6).tolist() == [False]


def test_of_two_equal_new_texts_one_joins():
    new = at_angles(90, 90)
    assert greedy_distinct(new, at_angles(0), 0.6).tolist() == [True, False]
    assert greedy_distinct(new, at_angles(), 0.6).tolist() == [True, False]
    assert greedy_distinct(at_angles(), new, 0.6).tolist() == []


def test_a_refused_text_keeps_nobody_out():
    """30 is refused for 0, so 80 is compared with 0 alone; 30 would have kept it out."""
    assert greedy_distinct(at_angles(0, 30, 80), at_angles(), 0.5).tolist() == [True, False, True]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 40), st.sampled_from([-0.3, 0.0, 0.6, 0.9, 1.0]))
def test_the_pool_is_the_loops_in_any_batches(seed, dimensions, size, threshold):
    rows = on_sphere(60, dimensions, seed)
    rows[20:30] = rows[:10]
    expected = distinct_by_loop(rows, [], threshold)
    assert greedy_distinct(rows, rows[:0], threshold).tolist() == expected
    pool, joined = rows[:0], []
    for start in range(0, len(rows), size):
        part = rows[start:start + size]
        joins = greedy_distinct(part, pool, threshold)
        pool, joined = np.concatenate([pool, part[joins]]), [*joined, *joins.tolist()]
    assert joined == expected


def test_the_nearest_of_many_is_found_with_its_cosine():
    rows, pool = on_sphere(1100, 6, 1), on_sphere(300, 6, 2)
    at, cosines = nearest(rows, pool)
    assert at.tolist() == (rows.astype(float) @ pool.T.astype(float)).argmax(axis=1).tolist()
    assert cosines[7] == product(rows[7], pool[at[7]])


# -------------------------------------------------------------------------------------------------- clusters


def test_leader_clusters_of_the_published_vector():
    """Item 1 first joins leader 0 (cosine 0.574) and moves to leader 3 (0.707)."""
    rows = at_angles(0, 55, 30, 100, 75, 10)
    assert leader_clusters(rows, 0.5).tolist() == [0, 3, 0, 3, 3, 0]
    assert leader_clusters(rows[:3], 0.5).tolist() == [0, 0, 0]


def test_equal_scores_do_not_move_a_text():
    assert leader_clusters(at_angles(0, 50, 100), 0.5).tolist() == [0, 0, 2]  # 50 degrees from both


def test_the_threshold_itself_is_not_above_it():
    rows = np.array([[1.0, 0.0], [0.6, 0.8]], dtype=np.float32)
    assert leader_clusters(rows, 0.6).tolist() == [0, 1]
    assert leader_clusters(rows, 0.599999).tolist() == [0, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 90), st.sampled_from([-0.5, 0.0, 0.5, 0.95]))
def test_clusters_are_the_loops(seed, dimensions, count, threshold):
    rows = on_sphere(count, dimensions, seed)
    rows[count // 2:] = rows[:count - count // 2]  # with repeats, so that scores tie
    rows = rows[np.random.default_rng(seed).permutation(count)]
    assert leader_clusters(rows, threshold).tolist() == clusters_by_loop(rows, threshold)


def test_twenty_thousand_texts_are_clustered_in_seconds():
    import time

    centres = on_sphere(1600, 128, 0)
    rng = np.random.default_rng(1)
    rows = centres[rng.integers(0, 1600, 20_000)] + rng.normal(size=(20_000, 128)) * 0.06
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    start = time.process_time()
    found = leader_clusters(rows, 0.5)
    assert time.process_time() - start < 10  # about half a second on the machine it was written on
    assert (found[found] == found).all() and 1000 < len(set(found.tolist())) < 3000
    assert (cosine(rows[:200], rows) > 0.5)[np.arange(200), found[:200]].all()
