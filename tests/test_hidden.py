"""A model's own view of a text as an embedding: bare, at the place of a reply, and by the reply itself."""

import numpy as np
import pytest
import torch

from dialoom.errors import ConfigError
from dialoom.models.base import Sampling
from dialoom.models.hidden import HiddenStates
from tests.tiny import tiny_model


def frame(text):
    return [{"role": "user", "content": f"Sum up: {text}"}]


def test_an_answers_embedding_is_the_mean_of_the_states_its_tokens_were_drawn_from():
    model = tiny_model()
    found = HiddenStates(model, frame=frame, answer=5).encode(["She keeps hens."])[0]
    said = model.chat([frame("She keeps hens.")], Sampling(temperature=0, max_new_tokens=5), ["any"])[0].tokens
    prompt = model.prompt_ids(frame("She keeps hens."))
    with torch.inference_mode():
        read = model.module(input_ids=torch.tensor([[*prompt, *said]]), output_hidden_states=True)
    mean = read.hidden_states[-1][0][len(prompt) - 1:len(prompt) - 1 + len(said)].mean(0)
    np.testing.assert_allclose(found, mean / mean.norm(), atol=1e-5)


def test_an_answer_of_one_token_is_the_state_that_begins_the_reply():
    model = tiny_model()
    texts = ["Rome", "She keeps hens.", ""]
    np.testing.assert_allclose(HiddenStates(model, frame=frame, answer=1).encode(texts),
                               HiddenStates(model, frame=frame).encode(texts), atol=1e-5)


def test_a_text_is_embedded_alike_alone_and_among_others():
    embedder = HiddenStates(tiny_model(), frame=frame, answer=6)
    texts = ["Rome", "which river flows " * 80, "She keeps hens.", ""]  # the second is beyond the context
    with pytest.warns(match="truncated"):
        rows = embedder.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    for text, row in zip(texts, rows, strict=True):
        np.testing.assert_allclose(embedder.encode([text])[0], row, atol=1e-4)


def test_a_name_tells_frame_and_answer_apart():
    model = tiny_model()
    names = {HiddenStates(model).name, HiddenStates(model, frame=frame).name,
             HiddenStates(model, frame=frame, answer=6).name, HiddenStates(model, frame=frame, answer=7).name}
    assert len(names) == 4


@pytest.mark.parametrize("options", [{"answer": 4}, {"answer": -1, "frame": frame}])
def test_an_answer_without_a_question_is_refused(options):
    with pytest.raises(ConfigError, match="give a frame and a positive number"):
        HiddenStates(tiny_model(), **options)
