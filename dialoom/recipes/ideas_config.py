"""Settings of the IDEAS recipe, and the paper's. No torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dialoom.models.placed import Placed
from dialoom.pocket.world.strategy_tables import BRIEFS
from dialoom.recipes.ideas_clusters import ABSTRACT, POCKET_ABSTRACT
from dialoom.recipes.ideas_induce import EXTRACT, POCKET_EXTRACT, REFUSALS
from dialoom.recipes.ideas_ranker import RankerConfig
from dialoom.recipes.ideas_simulator import CHOOSE, CONTINUE, POCKET_CHOOSE, POCKET_CONTINUE
from dialoom.train.config import TrainConfig

Arm = Literal["plain", "plain_trained", "random_strategy", "ideas"]
ARMS: tuple[Arm, ...] = ("plain", "random_strategy", "ideas")
"""Who writes the user's messages: one who knows no strategies, IDEAS' simulator with any strategies, and IDEAS."""


class IdeasConfig(Placed):
    """Settings of one IDEAS run; the defaults are the pocket run."""

    not_identity: ClassVar[frozenset[str]] = Placed.not_identity | {"batch"}

    model: str = "pocket"
    """The chat model that is trained on the dialogues: pocket, hf:<name or path>[+<adapter>], run:<folder>."""
    simulator: str = "pocket"
    """The user simulator, trained on the source dialogues; an endpoint is asked as it is."""
    plain: str = ""
    """Who writes for the arm without strategies; any model. Empty: `simulator` as it was before training."""
    extractor: str = "pocket"
    """Who names the strategy behind a real user's turn; any model."""
    abstractor: str = "pocket"
    """Who names what the strategies of a cluster have in common; any model."""
    verifier: str = "exact"
    """Who checks an instruction: exact (pocket's rule), rule (shared words, for any text) or a model."""
    answerer: str = "pocket"
    """Who answers in the dialogues; any model."""
    judge: str = "exact"
    """Who judges the chat models' answers: exact (pocket's rule), or a model from 1 to 10."""
    data: str = ""
    """Source dialogues, ShareGPT JSON or JSON lines. Empty: dialogues of pocket's world."""
    strategies: str = ""
    """A JSON list of strategies to take instead of inducing any; turns get the nearest one."""
    openings: str = ""
    """First questions and answers, JSON lines with topic and message. Empty: pocket's, or those of `data`."""
    questions: str = ""
    """Questions in MT-Bench's layout, two or eight turns, which the chat models answer and `judge` rates."""
    corpus_count: int = Field(90, ge=2)
    """Source dialogues used, at most."""
    opening_count: int = Field(80, ge=1)
    """Openings that dialogues are made from, at most (10,000 in the paper)."""
    eval_count: int = Field(60, ge=1)
    """Held-out conversations that the chat models are asked."""
    split: Literal["test", "valid"] = "test"
    """Evaluate on the held-out topics (or dialogues), or on others that are for choosing settings."""
    embedding: str = "hidden:pocket"
    """How strategies are compared: ngrams, st:<name>, hidden:<model>."""
    ranker_embedding: str = "ngrams"
    """How the ranker sees answers and strategies."""
    cluster: Literal["leader", "agglomerative", "hdbscan"] = "leader"
    """How strategies are clustered; leader in the paper."""
    threshold: float | None = Field(None, ge=-1, lt=1)
    """Cosine above which strategies share a cluster (0.5 in the paper); none: picked by silhouette from a sweep."""
    candidates: int = Field(50, ge=1)
    """Strategies a simulator chooses from, at most."""
    train_candidates: tuple[int, ...] = (2, 4, 8)
    """Strategies listed in the simulator's training, the true one among them; the dialogues take these in turn."""
    policy: Literal["ranker", "random", "novelty"] = "ranker"
    """How the candidates come about; novelty: the ranker's, rarer where the dialogue has used them."""
    ranker: RankerConfig = RankerConfig()
    """The ranker's training."""
    max_pairs: int = Field(6, ge=2)
    """Pairs of a dialogue, the opening's included (10 in the paper)."""
    max_failures: int = Field(5, ge=0)
    """A dialogue ends once more instructions than this were rejected in a row."""
    alike: float = Field(0.8, ge=0, le=1)
    """An instruction with a greater edit ratio to an earlier one of its dialogue is rejected."""
    max_words: int = Field(120, ge=1)
    """A longer instruction is rejected."""
    batch: int = Field(256, ge=1)
    """Dialogues in flight; bounds memory and changes no result."""
    temperature: float = Field(0.7, ge=0)
    """Sampling temperature of the simulators."""
    answer_temperature: float = Field(0.7, ge=0)
    """That of answers in the dialogues; chat models are evaluated greedily."""
    max_new_tokens: int = Field(60, ge=1)
    """Length limit of an instruction, and of an answer."""
    neutral: str = ""
    """System prompt of the chat model, in training and evaluation; pocket's has none."""
    extract: str = POCKET_EXTRACT
    """System prompt of the extractor."""
    abstract: str = POCKET_ABSTRACT
    """System prompt of the abstractor, under which `hidden:<model>` embeds a strategy, too."""
    extract_temperature: float = Field(0.7, ge=0)
    """Sampling temperature of the extractor (0 in the paper)."""
    extract_draws: int = Field(2, ge=1)
    """Strategies asked for each turn; more than one only as a pool for `weighed`."""
    weighed: int = Field(48, ge=0)
    """Turns get that of so many named strategies which best explains them to `simulator`; 0: the extractor's word."""
    choose: str = POCKET_CHOOSE
    """System prompt of the simulator; takes {strategies}, the candidates."""
    curious: str = POCKET_CONTINUE
    """System prompt of the plain simulator."""
    careful: str = BRIEFS["careful"][0]
    """System prompt of the answerer."""
    refusals: tuple[str, ...] = REFUSALS
    """An answer with one of these ends a dialogue before it, case aside; also drops a source dialogue."""
    simulator_sft: TrainConfig = TrainConfig(epochs=3, lr=1e-3, batch_pairs=12)
    """Training of the simulator, on one turn of a real user at a time."""
    sft: TrainConfig = TrainConfig(epochs=2, lr=3e-4, batch_pairs=16)
    """Training of the chat models, on answers only."""
    arms: tuple[Arm, ...] = ARMS
    """Data sets to make and train on, cut to one budget; plain_trained is plain after training on the same turns."""
    ceiling: str = BRIEFS["careful"][0]
    """Brief of the `briefed` row, the stated ceiling; empty leaves the row out."""
    seed: int = 1
    """Draws dialogues, candidates, sampling and training."""

    @property
    def asks_simulator(self) -> bool:
        """Whether the simulator is an endpoint, which is asked as it is and not trained."""
        return self.simulator.startswith("openai:")

    @model_validator(mode="after")
    def _fits_together(self) -> IdeasConfig:
        if "{strategies}" not in self.choose:
            raise ValueError(f"choose: expected a text with {{strategies}} in it, got {self.choose!r:.60}")
        if not self.train_candidates or min(self.train_candidates) < 1:
            raise ValueError(f"train_candidates: expected numbers of 1 or more, got {list(self.train_candidates)}")
        if "ideas" not in self.arms:
            raise ValueError(f"arms: expected ideas among them, got {list(self.arms)}")
        return self


_PAPER_SIMULATOR = TrainConfig(epochs=3, lr=2e-5, batch_pairs=1024, warmup=0.03, bf16=True)
_PAPER_CHAT = TrainConfig(epochs=3, lr=2e-5, batch_pairs=256, warmup=0.03, bf16=True)
_PAPER_MODEL = "hf:meta-llama/Llama-2-13b-chat-hf"  # the chat-tuned sister: the paper's base has no chat template
PAPER = IdeasConfig(  # arXiv 2404.11095 with the values of the released scripts
    model=_PAPER_MODEL, simulator=_PAPER_MODEL, extractor="openai:gpt-4", abstractor="openai:gpt-4",
    verifier="openai:gpt-4", answerer="openai:gpt-4", judge="openai:gpt-4", plain="openai:gpt-4", corpus_count=100_000,
    opening_count=10_000, eval_count=80, embedding="st:all-MiniLM-L6-v2",
    ranker_embedding="st:all-MiniLM-L6-v2", threshold=0.5, max_pairs=10, temperature=1.0, answer_temperature=1.0,
    max_new_tokens=1024, choose=CHOOSE, curious=CONTINUE, careful="", max_words=400,
    extract=EXTRACT, abstract=ABSTRACT, extract_temperature=0.0, extract_draws=1, weighed=0, train_candidates=(50,),
    simulator_sft=_PAPER_SIMULATOR, sft=_PAPER_CHAT, ceiling="")
PRESETS = {"pocket": IdeasConfig(), "paper": PAPER}
