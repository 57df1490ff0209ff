"""A local model's own view of a text as an embedding: its last hidden states.

The surprising choice: what a small model knows of a text often shows only where it is about to answer a question about
it. With a `frame` the embedding is the state at that place; without one it is the mean over the bare text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dialoom.dialogue import Chat, content_id
from dialoom.errors import ModelError
from dialoom.models.decode import batches
from dialoom.models.load import load_model
from dialoom.models.local import LocalModel


class HiddenStates:
    """Embeds a text by a model's last hidden states.

    Args:
        frame: makes a chat of a text; the embedding is the state that begins the reply. None: the mean of the states
            over the text's own tokens, with no chat template around it.
    """

    def __init__(self, model: LocalModel, *, frame: Callable[[str], Chat] | None = None) -> None:
        self.model = model
        self.frame = frame

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
        """Such as `hidden:pocket@1f0c...`: other weights are another embedding."""
        framed = f"/{content_id(self.frame('text'))[:8]}" if self.frame else ""
        return f"hidden:{self.model.name}@{self.model.fingerprint}{framed}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(texts, hidden size) unit rows; bare texts beyond the context are cut at their end."""
        model = self.model
        rows = [self._ids(text) for text in texts]
        size = int(model.module.config.get_text_config().hidden_size)
        found = np.zeros((len(rows), size), dtype=np.float32)
        was_training = model.module.training
        model.module.eval()
        try:
            with torch.inference_mode():
                for group in batches(rows, 0, model.batch_tokens):
                    found[group] = self._states([rows[at] for at in group])
        finally:
            model.module.train(was_training)
        return found

    def _ids(self, text: str) -> list[int]:
        if self.frame:
            return self.model.prompt_ids(self.frame(text))
        ids = list(self.model.tokenizer(text)["input_ids"])[:self.model.context]
        return ids or [int(self.model.tokenizer.eos_token_id or 0)]

    def _states(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """One unit row each. Padded on the right: in a causal model no token sees what comes after it."""
        longest, device = max(map(len, rows)), self.model.device
        ids = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        shares = torch.tensor([[1.0 / len(row)] * longest for row in rows], device=device) * mask
        if self.frame:
            shares = torch.nn.functional.one_hot(mask.sum(1) - 1, longest).float()
        states = self.model.module(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False,
                                   logits_to_keep=1).hidden_states[-1].float()
        means = (states * shares[..., None]).sum(1)
        found: NDArray[np.float32] = torch.nn.functional.normalize(means, dim=-1).cpu().numpy()
        return found
