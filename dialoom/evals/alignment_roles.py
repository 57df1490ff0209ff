"""Who talks in an alignment dialogue: users who play a persona, and the subjects that a prompt is to make adaptive.

A scenario's facts hold the persona, which judges and users read and subjects do not. A user by rule writes in the
words of pocket's world; any chat model can be one by its brief. The subjects are the usual prompt baselines: a
reminder at each message, a second look at one's own reply, worked examples.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dialoom.dialogue import Brief, Chat, Dialogue, Scenario, chat_view, content_id
from dialoom.models.base import ChatModel, Sampling
from dialoom.pocket.world import personas as world
from dialoom.scenarios.personas import Persona
from dialoom.simulate import ModelSpeaker, Request, ScriptedSpeaker, speaking

USER, ASSISTANT = "user", "assistant"
PLAY = ("You are chatting with a friend, and you are this person.\nYour life: {profile}\nYour character: {personality}"
        "\n\nPick something from your life to talk about and say it the way your character would. Give away only a "
        "little of your life in each message, and do not always ask for advice. Write like a person in a chat: short, "
        "at most three sentences, no stage directions, and never a word about playing a role.")
REMIND = ("(Think of everything I mentioned so far and of the way I talk, and let your answer suit someone like me.)")
RECONSIDER = ("Read your last answer again with my eyes. Does it go with how I talk, and with what I said about my "
              "life? Write an improved answer to my message, and only that.")
EXAMPLES = ("Three good conversations, to show what is wanted.\n\n"
            "Friend: ugh, monday again lol. at least the chess club meets tonight\n"
            "Thought: relaxed, jokes, small letters; plays chess.\n"
            "You: lol mondays are check, tonight you mate them back. who are you up against?\n\n"
            "Friend: Good evening. My daughter begins at the conservatory tomorrow, and I confess that I am anxious.\n"
            "Thought: formal and worried; a daughter, music.\n"
            "You: Good evening. Your concern does you credit. I am confident that she will find her place there.\n\n"
            "Friend: New saddle!!! Rosie loves it, we were out for HOURS!\n"
            "Thought: very lively; rides, a horse called Rosie.\n"
            "You: A new saddle and hours outside, Rosie must be the happiest horse around! Where did you two go?\n\n"
            "Answer the coming messages in this spirit, without writing the thought.")
_STAGE = re.compile(r"\*[^*\n]*\*")


def scenario_of(persona: Persona, later: Persona | None = None, at: int = 0) -> Scenario:
    """A chat with one person, about nothing in particular.

    Args:
        later: who the user is from turn `at` on (turns count from 1); None: the same all along.
    """
    facts: dict[str, object] = {"persona": _plain(persona)}
    if later is not None:
        facts |= {"later": _plain(later), "at": at}
    return Scenario(persona.id if later is None else content_id(persona.id, later.id, at), "", facts=facts)


def _plain(persona: Persona) -> dict[str, object]:
    return {"id": persona.id, "facts": list(persona.facts), "traits": list(persona.traits)}


def persona_at(scenario: Scenario, turn: int) -> Persona:
    """Who the user is in their `turn`-th message (from 1)."""
    about = scenario.facts["later" if turn >= scenario.facts.get("at", turn + 1) else "persona"]
    return Persona(str(about["id"]), tuple(about["facts"]), tuple(about["traits"]))


# ------------------------------------------------------------------------------------------------ users


def rule_user() -> ScriptedSpeaker:
    """A user who speaks in the words of pocket's world: one fact a message, some of the style."""
    def line(dialogue: Dialogue, seed: int) -> str:
        told = [turn.text for turn in dialogue.by(USER)]
        persona = persona_at(dialogue.scenario, len(told) + 1).world
        return world.write_message(persona, told, random.Random(content_id(seed, dialogue.scenario.id, len(told))))
    return ScriptedSpeaker(USER, line)


@dataclass(frozen=True)
class ModelUser(ModelSpeaker):
    """A model that plays the persona; stage directions between asterisks are cut out of what it says."""

    def speak(self, requests: Sequence[Request]) -> list[str]:
        return [" ".join(_STAGE.sub(" ", text).split()) for text in super().speak(requests)]


def model_user(model: ChatModel, sampling: Sampling, brief: str = PLAY) -> ModelUser:
    """A user simulator; `brief` takes `{profile}`, `{personality}` or `{persona}` (both)."""
    def briefs(dialogue: Dialogue, seed: int) -> list[Brief]:
        persona = persona_at(dialogue.scenario, len(dialogue.by(USER)) + 1)
        return [Brief("persona", brief.format(profile=persona.profile, personality=persona.personality,
                                              persona=persona.text))]
    return ModelUser(USER, model, sampling, briefs)


# ------------------------------------------------------------------------------------------------ subjects


def reminded(model: ChatModel, sampling: Sampling, neutral: str = "") -> ModelSpeaker:
    """The model with a reminder behind the user's last message."""
    def view(dialogue: Dialogue, viewer: str, brief: str | None = None) -> Chat:
        *before, last = chat_view(dialogue, viewer, brief)
        return [*before, {"role": last["role"], "content": f"{last['content']} {REMIND}"}]
    return replace(speaking(ASSISTANT, model, sampling, neutral), view=view)


def shown(model: ChatModel, sampling: Sampling, neutral: str = "") -> ModelSpeaker:
    """The model with worked examples, each with the thought before the reply."""
    brief = f"{neutral}\n\n{EXAMPLES}" if neutral else EXAMPLES
    return replace(speaking(ASSISTANT, model, sampling, brief), view=chat_view)


@dataclass(frozen=True)
class SelfCritic(ModelSpeaker):
    """Drafts a reply, looks at it again and says the improved one; the draft where nothing better comes."""

    def speak(self, requests: Sequence[Request]) -> list[str]:
        drafts = super().speak(requests)
        again: list[Chat] = [[*request.chat, {"role": "assistant", "content": draft or "..."},
                              {"role": "user", "content": RECONSIDER}]
                             for request, draft in zip(requests, drafts, strict=True)]
        keys = [content_id("again", request.id) for request in requests]
        improved = self.model.chat(again, self.sampling, keys)
        return [reply.text if reply.text.strip() else draft for reply, draft in zip(improved, drafts, strict=True)]


def self_critic(model: ChatModel, sampling: Sampling, neutral: str = "") -> SelfCritic:
    """The model under self-critique."""
    return SelfCritic(ASSISTANT, model, sampling, speaking(ASSISTANT, model, sampling, neutral).briefs)


def plain(model: ChatModel, sampling: Sampling, brief: str = "") -> ModelSpeaker:
    """The model as it is, under the neutral system prompt or another brief."""
    return replace(speaking(ASSISTANT, model, sampling, brief), view=chat_view)
