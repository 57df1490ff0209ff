"""Who is who in an IDEAS run: models by their specs, and the team of each arm's deduction."""

from __future__ import annotations

from dialoom.embed import CachedEmbedder, Embedder, load_embedder
from dialoom.evals.alignment_roles import ASSISTANT
from dialoom.models.base import ChatModel, Sampling
from dialoom.models.load import Models
from dialoom.recipes.ideas_clusters import strategy_embedder
from dialoom.recipes.ideas_config import IdeasConfig
from dialoom.recipes.ideas_deduce import (
    Limits,
    NoPolicy,
    NoveltyPolicy,
    Policy,
    RandomPolicy,
    RankerPolicy,
    Team,
    UserSimulator,
)
from dialoom.recipes.ideas_ranker import Ranker
from dialoom.recipes.ideas_simulator import PlainSimulator, Simulator
from dialoom.recipes.ideas_strategies import Strategies
from dialoom.recipes.ideas_verify import RULES, make_verifier
from dialoom.simulate import speaking


class Cast:
    """Who plays which part, by the models of a run."""

    def __init__(self, config: IdeasConfig) -> None:
        self.config = config
        self.model = Models(config.place).get

    def embedder(self, spec: str) -> Embedder:
        """The embedder of a spec, which encodes each text once."""
        return CachedEmbedder(load_embedder(spec, device=self.config.device))

    def strategy_embedder(self) -> Embedder:
        """What strategies are compared by."""
        return strategy_embedder(self.config.embedding, brief=self.config.abstract, device=self.config.device)

    @property
    def limits(self) -> Limits:
        """When messages are rejected and dialogues end."""
        config = self.config
        return Limits(config.max_pairs, config.max_failures, config.alike, config.max_words)

    def team(self, arm: str, strategies: Strategies, simulator: ChatModel | None,
             ranker: Ranker | None) -> Team:
        """Who makes the dialogues of an arm.

        Args:
            simulator: the one that was trained for this arm; None for `plain`.
            ranker: None where the policy is random.
        """
        config = self.config
        writing = Sampling(config.temperature, max_new_tokens=config.max_new_tokens)
        author: UserSimulator
        policy: Policy
        if arm in ("plain", "plain_trained"):
            plain = simulator or self.model(config.plain or config.simulator, "plain")
            author = PlainSimulator(plain, writing, config.curious)
            policy = NoPolicy()
        else:
            assert simulator is not None, "only a plain simulator goes untrained"
            author = Simulator(simulator, writing, config.choose)
            policy = self.policy(strategies, ranker if arm == "ideas" else None)
        rule = config.verifier in RULES
        verifier = make_verifier(config.verifier, None if rule else self.model(config.verifier, "verifier"))
        answering = Sampling(config.answer_temperature, max_new_tokens=config.max_new_tokens)
        return Team(author, policy, verifier,
                    speaking(ASSISTANT, self.model(config.answerer, "answerer"), answering, config.careful))

    def policy(self, strategies: Strategies, ranker: Ranker | None) -> Policy:
        """Who lists strategies: the ranker; without one chance, which lists as many as training did at most."""
        config = self.config
        if ranker is None:
            return RandomPolicy(strategies.high, min(config.candidates, max(config.train_candidates)))
        if config.policy == "novelty":
            return NoveltyPolicy(RankerPolicy(ranker, len(strategies.high)), config.candidates)
        return RankerPolicy(ranker, config.candidates)
