"""A local model's own view of a text as an embedding: its last hidden states.

The surprising choice: what a model knows of a text often shows only where it answers a question about it. With a
`frame` the embedding is the state that begins that answer, and with `answer` the mean of those in which it is written,
the model's own greedy words; without a frame it is the mean over the bare text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dialoom.dialogue import Chat, content_id
from dialoom.errors import ConfigError, ModelError
from dialoom.models.base import Sampling
from dialoom.models.decode import batches
from dialoom.models.load import load_model
from dialoom.models.local import LocalModel


class HiddenStates:
    """Embeds a text by a model's last hidden states.

    Args:
        frame: makes a chat of a text, a question about it; the embedding is the state that begins the reply. None: the
            mean of the states over the text's own tokens, with no chat template around it.
        answer: > 0: the model replies to the frame first, greedily and with so many tokens at most, and the embedding
            is the mean of the states from which the tokens of its reply were drawn. Texts about which it says the same
            become neighbours, however little their own words share.
    Raises: ConfigError: if there is an answer and no frame to ask by.
    """

    def __init__(self, model: LocalModel, *, frame: Callable[[str], Chat] | None = None, answer: int = 0) -> None:
        if answer < 0 or (answer and frame is None):
            raise ConfigError(f"an embedding by an answer of {answer} tokens {'' if frame else 'and no frame '}cannot "
                              "be made; give a frame and a positive number, or 0 for none")
        self.model = model
        self.frame = frame
        self.answer = answer

    @classmethod
    def load(cls, spec: str, *, device: str = "auto") -> HiddenStates:
        """The embedder of the model that `spec` names. Raises ModelError if it does not run on this machine."""
        if spec.startswith("openai:"):
            raise ModelError(f"hidden:{spec}: an endpoint shows no hidden states; take pocket or hf:<name>")
        model = load_model(spec, device=device)
        if not isinstance(model, LocalModel):
            raise ModelError(f"hidden:{spec}: {model.name} shows no hidden states; take pocket or hf:<name>")
        return cls(model)

    @property
    def name(self) -> str:
        """Such as `hidden:pocket@1f0c...`: other weights are another embedding, and so are another frame or answer."""
        framed = f"/{content_id(self.frame('text'))[:8]}" if self.frame else ""
        answered = f"/answer-{self.answer}" if self.answer else ""
        return f"hidden:{self.model.name}@{self.model.fingerprint}{framed}{answered}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(texts, hidden size) unit rows; bare texts beyond the context are cut at their end."""
        model = self.model
        rows = self._rows(texts)
        size = int(model.module.config.get_text_config().hidden_size)
        found = np.zeros((len(rows), size), dtype=np.float32)
        was_training = model.module.training
        model.module.eval()
        try:
            with torch.inference_mode():
                for group in batches([ids for ids, _ in rows], 0, model.batch_tokens):
                    found[group] = self._states([rows[at] for at in group])
        finally:
            model.module.train(was_training)
        return found

    def _rows(self, texts: Sequence[str]) -> list[tuple[list[int], int]]:
        """For each text the ids that are read, and how many of the last states make the embedding."""
        model = self.model
        if self.frame is None:
            bare = [list(model.tokenizer(text)["input_ids"])[:model.context] for text in texts]
            return [(ids or [int(model.tokenizer.eos_token_id or 0)], max(1, len(ids))) for ids in bare]
        chats = [self.frame(text) for text in texts]
        prompts = [model.prompt_ids(chat) for chat in chats]
        if not self.answer:
            return [(ids, 1) for ids in prompts]
        said = model.chat(chats, Sampling(temperature=0.0, max_new_tokens=self.answer),
                          [content_id("embed", text) for text in texts])
        # the state that draws a token stands one before it, so the last token need not be read
        return [([*ids, *reply.tokens[:-1]][-model.context:], max(1, len(reply.tokens)))
                for ids, reply in zip(prompts, said, strict=True)]

    def _states(self, rows: Sequence[tuple[list[int], int]]) -> NDArray[np.float32]:
        """One unit row each. Padded on the right: in a causal model no token sees what comes after it."""
        longest, device = max(len(ids) for ids, _ in rows), self.model.device
        ids = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row, _ in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row, _ in rows], device=device)
        shares = torch.tensor([[0.0] * (len(row) - last) + [1.0 / last] * last + [0.0] * (longest - len(row))
                               for row, last in rows], device=device)
        states = self.model.module(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False,
                                   logits_to_keep=1).hidden_states[-1].float()
        means = (states * shares[..., None]).sum(1)
        found: NDArray[np.float32] = torch.nn.functional.normalize(means, dim=-1).cpu().numpy()
        return found
