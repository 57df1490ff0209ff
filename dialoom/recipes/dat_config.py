"""Settings of DAT: the pocket run's defaults, and the paper's preset. No torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dialoom.config import Config, Values
from dialoom.models.placed import Placed
from dialoom.recipes.dat_redteam_config import RedTeamStage
from dialoom.train.td3_config import PAPER as PAPER_TD3
from dialoom.train.td3_config import TD3Config


class CloneStage(Config):
    """The model's own replies, and the clone and up-mapping that are fitted to them."""

    data: str = ""
    """Replies to clone instead of the model's own: CSV with columns input (the prompt as the template writes it) and
    target."""
    prompts: int = Field(600, ge=10)
    """Prompts the model answers, from unsteered training dialogues; a tenth of them measures the clone's gap."""
    replies: int = Field(8, ge=1)
    """Replies to each prompt; `coded` learns what they differ in, so it needs several. 1 in the paper."""
    temperature: float = Field(1.0, gt=0)
    """Their sampling temperature; 0.7 in the paper, which makes a clone surer than the model is."""
    hidden: tuple[int, ...] = (128,)
    """Widths of the clone's layers; 0: as wide as the model, as in the paper."""
    steps: int = Field(300, ge=1)
    """`coded`: optimiser steps."""
    batch: int = Field(12, ge=1)
    """Prompts in one step; 16 in the paper."""
    each: int = Field(4, ge=1)
    """`coded`: replies of each prompt in one step, of rare sorts rather than of common ones."""
    epochs: int = Field(4, ge=1)
    """`clone`: passes over the replies; 10 in the release, 100 in its commands."""
    lr: float = Field(2e-3, gt=0)
    """AdamW's rate for the clone, which goes linearly to zero; 1e-3 in the paper."""
    mapping_lr: float = Field(0.05, gt=0)
    """`coded`: the same for the up-mapping, whose numbers are as small as embeddings."""
    plain: float = Field(0.2, ge=0, le=1)
    """`coded`: share of replies that are learned without their code, so that no action is the plain clone."""


class Sweep(Config):
    """The values `dialoom dat sweep RUN` tries, one setting at a time."""

    mapping: tuple[Literal["pca", "clone", "coded"], ...] = ("pca", "clone", "coded")
    """How an action becomes a prefix, each with the length of action that is its own if `norm` is 0."""
    tokens: tuple[int, ...] = (1, 2, 4)
    """Soft tokens of a prefix."""
    action: tuple[int, ...] = (8, 16, 24)
    """Numbers in an action."""
    norm: tuple[float, ...] = (0.5, 0.6, 0.8, 1.0, 1.5)
    """Length of an action."""


class DatConfig(Placed):
    """A DAT run; the defaults are the pocket run's."""

    not_identity: ClassVar[frozenset[str]] = Placed.not_identity | {"sweep"}

    model: str = "pocket"
    """The model that is steered and stays as it is: pocket, hf:<name or path>, run:<folder>; no endpoint."""
    scenes: Literal["social", "redteam"] = "social"
    """What is talked about: goals among people, or getting a defender to do what it should refuse."""
    data: str = ""
    """Your scenes: a folder in Sotopia's layout (social), a file of behaviours in HarmBench's (redteam). Empty: the
    pocket world's."""
    partner: str = ""
    """Whom the planner is trained against; any model. Empty: the pocket world's rule (social), its guard (redteam)."""
    transfer: tuple[str, ...] = ("pocket", "pocket-small")
    """Partners it is tried on without having met them."""
    judge: str = ""
    """The model that judges your scenes: on seven points (social), or yes or no after each round (redteam). Pocket's
    have an exact rule and take none."""
    scene: int = Field(-1, ge=-1)
    """One training scene only, by its number, as the release trains; it is evaluated there, too. -1: all of them."""
    train_scenes: int = Field(400, ge=2)
    """Training scenes taken at most."""
    valid_scenes: int = Field(100, ge=2)
    """Scenes for choosing settings, taken at most."""
    test_scenes: int = Field(200, ge=2)
    """Held-out scenes taken at most."""
    rounds: int = Field(3, ge=1)
    """Rounds of a scene, two turns each; 3 in the paper."""
    temperature: float | None = Field(None, ge=0)
    """Sampling temperature of the steered party; 0.7 in the paper. None: the scenes' own (0.7, redteam 0.3)."""
    max_new_tokens: int = Field(40, ge=1)
    """Length limit of one reply; 384 in the release."""
    seed: int = 1
    """Seeds sampling, draws and training."""

    mapping: Literal["pca", "clone", "coded"] = "coded"
    """How an action becomes a prefix: along principal directions of the embeddings; by a mapping learned in
    self-cloning; or by one learned in self-cloning with codes of what the model's own replies differ in."""
    tokens: int = Field(4, ge=1)
    """Soft tokens of a prefix; 2 in the paper."""
    action: int = Field(16, ge=1)
    """Numbers in an action; for `coded` also the sorts of replies told apart. 64 or 128 in the paper."""
    norm: float = Field(0.0, ge=0)
    """Length of an action, the released 0.6 or 1; 0: the scale of the mapping (the length of an embedding for `pca`, 1
    for `clone`, the scenes' own for `coded`: 0.8 social, 0.6 redteam)."""
    repeated: bool = True
    """`pca`: every soft token is the same, as released; off: each has directions of its own."""
    position: Literal["start", "end"] = "end"
    """Where the prefix stands: after the first prompt token, as released, or after the last (what was read is kept)."""
    clone: CloneStage = CloneStage()
    """Self-cloning; unused by `pca`."""

    upmap: str = ""
    """Folder of a run whose up-mapping is used instead of making one. Collectors whose replays are to be put together
    need the same."""
    passes: int = Field(2, ge=1)
    """Collections, each followed by training: the first explores everywhere, later ones follow the planner so far in
    part. 1 in the release."""
    episodes: int = Field(1, ge=1)
    """Times each training scene is played in one pass, under other seeds."""
    exploration: Literal["everywhere", "around"] = "everywhere"
    """Later passes: the turns that explore draw from everywhere again (a corner of `coded`, any direction of the other
    mappings), or stay around what the planner so far does there. The first pass has no planner yet: everywhere."""
    noise: float = Field(0.1, ge=0)
    """Exploration around the planner, or around a corner of `coded`: standard deviation of each number, on directions
    of length 1; 0.1 in the release. Any direction is drawn without it."""
    explore: float = Field(0.5, ge=0, le=1)
    """Later passes: share of turns that explore; in the others the planner's own action is taken."""
    collector: int = Field(0, ge=0)
    """Number of this collector: others draw other randomness, so that their replays add up."""
    replays: tuple[str, ...] = ()
    """Run folders of other collectors with the same model and up-mapping, whose replays are put into the buffer."""
    td3: TD3Config = TD3Config(steps=1000, gamma=0.5, policy_noise=0.05, critic_widths=(64, 32))
    """Training the planner."""

    constants: int = Field(16, ge=1)
    """Constant actions tried on training scenes; the best is the `constant` of the evaluation."""
    constant_scenes: int = Field(60, ge=1)
    """Training scenes they are tried on."""
    sweep: Sweep = Sweep()
    """Values for `dialoom dat sweep`."""
    harden: bool = False
    """Afterwards train the defender on what the planner found, and attack it again (redteam)."""
    redteam: RedTeamStage = RedTeamStage()
    """Red-team scenes."""

    @classmethod
    def deciding(cls, values: Values) -> Values:
        """Red-team settings only where there are red-team scenes."""
        found = super().deciding(values)
        if found.get("scenes") != "redteam":
            found.pop("redteam", None)
        return found

    @model_validator(mode="after")
    def _what_fits(self) -> DatConfig:
        if self.harden and self.scenes != "redteam":
            raise ValueError(f"harden is on, but scenes is {self.scenes}; only a red-team defender can be hardened")
        if self.mapping == "coded" and self.clone.replies < 2:
            raise ValueError(f"clone.replies is {self.clone.replies}; coded needs 2 or more replies to a prompt, to "
                             "tell what they differ in")
        if self.mapping == "coded" and self.clone.data:
            raise ValueError("clone.data holds one reply to a prompt, but mapping is coded; give --mapping clone")
        if self.clone.data and (self.mapping == "pca" or self.upmap):
            using = f"upmap uses the mapping of {self.upmap}" if self.upmap else "mapping is pca"
            raise ValueError(f"clone.data is {self.clone.data}, but {using}, so nothing is cloned; leave clone.data "
                             "out, or give --mapping clone without --upmap")
        if self.exploration == "around" and self.passes == 1:
            raise ValueError("exploration is around, but passes is 1, and the first pass has no planner to be around; "
                             "give --passes 2")
        return self


PAPER = DatConfig(  # arXiv 2406.11978 and its release's commands, with TD3's BC term left on
    model="hf:meta-llama/Llama-2-7b-chat-hf", partner="hf:meta-llama/Llama-2-7b-chat-hf",
    transfer=("hf:meta-llama/Meta-Llama-3-8B-Instruct",), temperature=0.7, max_new_tokens=384, mapping="pca", tokens=2,
    action=64, norm=1.0, position="start", passes=1, episodes=25, noise=0.1, td3=PAPER_TD3,
    clone=CloneStage(replies=1, temperature=0.7, hidden=(0,), batch=16, lr=1e-3, epochs=10))
PRESETS = {"pocket": DatConfig(), "paper": PAPER}
