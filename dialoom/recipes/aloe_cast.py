"""Who is who in an ALOE run: user, inducer, judge and comparison, as the settings name them."""

from __future__ import annotations

from dialoom.embed import CachedEmbedder, load_embedder
from dialoom.evals.alignment_judge import DrawnOrderComparer, ExactComparer, RatingJudge, exact_judge
from dialoom.evals.alignment_roles import model_user, rule_user
from dialoom.judge import Comparer, Judge
from dialoom.models.base import Sampling
from dialoom.models.load import Models
from dialoom.recipes.aloe_config import RULE, AloeConfig
from dialoom.recipes.aloe_dialogues import ModelInducer, RuleInducer
from dialoom.simulate import Speaker


class Cast:
    """Who plays which part, by the models of a run."""

    def __init__(self, config: AloeConfig) -> None:
        self.config = config
        self.model = Models(config.place).get

    def user(self) -> Speaker:
        """Who plays the people."""
        if self.config.user == RULE:
            return rule_user()
        return model_user(self.model(self.config.user, "user"), self._sampling(self.config.max_new_tokens),
                          self.config.user_brief)

    def inducer(self) -> Judge:
        """Who says what is out by now."""
        if self.config.inducer != RULE:
            return ModelInducer(self.model(self.config.inducer, "inducer"), self._sampling(60))
        if not self.config.personas and not self.config.eval_personas:
            return RuleInducer()
        embedder = CachedEmbedder(load_embedder(self.config.embedding, device=self.config.device))
        return RuleInducer(embedder, self.config.revealed_above)

    def judge(self) -> Judge:
        """Who scores single replies."""
        if self.config.judge == "exact":
            return exact_judge()
        return RatingJudge(self.model(self.config.judge, "judge"), self._sampling(8))

    def comparer(self) -> Comparer:
        """Who prefers one of two replies."""
        if self.config.judge == "exact":
            return ExactComparer()
        return DrawnOrderComparer(self.model(self.config.judge, "judge"), self.config.seed, self._sampling(8))

    def _sampling(self, tokens: int) -> Sampling:
        return Sampling(self.config.user_temperature, max_new_tokens=tokens)


def replies(config: AloeConfig) -> Sampling:
    """How replies are drawn, in dialogues and in evaluations."""
    return Sampling(config.temperature, max_new_tokens=config.max_new_tokens)
