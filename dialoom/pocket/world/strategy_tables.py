"""The closed vocabulary of the strategy world: topics, what is true of them, strategies, frames. Data only; no logic.

What is true is mostly true of a whole kind of topics (every kitchen tool has the same risk), so that a tiny model can
know it.
"""

from __future__ import annotations

KINDS: dict[str, dict[str, str]] = {
    "kitchen tool": {
        "use": "to cook at home", "risk": "a burnt hand", "cost": "about twenty coins", "limit": "it fills up fast",
        "why": "cooked food is safe to eat", "compare": "a camp fire", "parts": "a handle, a base and a lid",
        "steps": "wash it, fill it, heat it", "source": "the cook book", "origin": "in old clay kitchens"},
    "garden tool": {
        "use": "to keep a garden neat", "risk": "a sore back", "cost": "about thirty coins",
        "limit": "it rusts in the rain",
        "why": "plants need loose soil", "compare": "bare hands", "parts": "a grip, a shaft and a blade",
        "steps": "clear the ground, work in rows, clean it", "source": "the garden guide",
        "origin": "on the first farms"},
    "instrument": {
        "use": "to make music", "risk": "angry neighbours", "cost": "about four hundred coins",
        "limit": "it goes out of tune", "why": "music lifts the mood", "compare": "the human voice",
        "parts": "a body, a neck and a case", "steps": "tune it, play scales, learn a song",
        "source": "the music school", "origin": "at royal courts"},
    "vehicle": {
        "use": "to get to work", "risk": "a crash in the fog", "cost": "about nine hundred coins",
        "limit": "it stops on ice", "why": "walking takes too long", "compare": "a long walk",
        "parts": "a seat, a frame and a brake", "steps": "check the brake, look around, start slowly",
        "source": "the traffic office", "origin": "in busy port towns"},
    "drink": {
        "use": "to start the day", "risk": "a bad night", "cost": "about two coins", "limit": "it goes cold soon",
        "why": "the body needs water", "compare": "plain water", "parts": "a base, a flavour and a sweetener",
        "steps": "boil the water, add the flavour, stir it", "source": "the tea house",
        "origin": "in mountain monasteries"},
    "dish": {
        "use": "to feed a family", "risk": "a full stomach", "cost": "about eight coins",
        "limit": "it keeps for two days only", "why": "hunger makes people slow", "compare": "a cold sandwich",
        "parts": "a base, a sauce and a topping", "steps": "chop all, cook it, add salt",
        "source": "the chef next door", "origin": "among poor fishermen"},
    "sport": {
        "use": "to stay fit", "risk": "a twisted ankle", "cost": "about sixty coins a month",
        "limit": "it needs dry weather", "why": "the heart grows strong", "compare": "a gym class",
        "parts": "a warm up, a match and a rest", "steps": "join a club, train twice a week, enter a match",
        "source": "the sports club", "origin": "at village fairs"},
    "game": {
        "use": "to pass an evening", "risk": "a lost friend", "cost": "about fifteen coins",
        "limit": "it needs a partner", "why": "the mind stays sharp", "compare": "a crossword",
        "parts": "a set, a rule book and a score sheet", "steps": "read the rules, watch others, play a round",
        "source": "the rule book", "origin": "in soldier camps"},
    "craft": {
        "use": "to make gifts by hand", "risk": "a pricked finger", "cost": "about forty coins",
        "limit": "it takes many hours", "why": "handmade things last", "compare": "a factory",
        "parts": "a pattern, a thread and a finish", "steps": "draw a plan, practise on scraps, begin small",
        "source": "the craft fair", "origin": "in winter cabins"},
    "house job": {
        "use": "to save the rent money", "risk": "a wet floor", "cost": "about seventy coins",
        "limit": "it lasts five years", "why": "small damage grows", "compare": "a hired worker",
        "parts": "a plan, a tool box and a clean up", "steps": "cover the floor, do a test spot, finish the rest",
        "source": "the hardware shop", "origin": "with the first brick houses"},
    "gadget": {
        "use": "to reach people far away", "risk": "a stolen password", "cost": "about three hundred coins",
        "limit": "the battery runs out", "why": "news travels fast", "compare": "a paper letter",
        "parts": "a screen, a chip and a plug", "steps": "charge it, set a password, update it",
        "source": "the online manual", "origin": "in army labs"},
    "study habit": {
        "use": "to pass an exam", "risk": "a boring week", "cost": "nothing at all", "limit": "it fails when tired",
        "why": "memory needs repetition", "compare": "a private tutor", "parts": "a goal, a timer and a review",
        "steps": "pick a subject, set a timer, test yourself", "source": "the school library",
        "origin": "among wandering monks"},
}

TOPICS: dict[str, tuple[str, str]] = {
    # topic -> kind, example
    "a kettle": ("kitchen tool", "a steel whistler"), "a pan": ("kitchen tool", "an iron skillet"),
    "a grater": ("kitchen tool", "a box with holes"), "a toaster": ("kitchen tool", "a two slot model"),
    "a blender": ("kitchen tool", "a glass jug"), "a rake": ("garden tool", "a leaf comb"),
    "a spade": ("garden tool", "a trench digger"), "a hose": ("garden tool", "a green reel"),
    "a trowel": ("garden tool", "a bulb planter"), "a wheelbarrow": ("garden tool", "a one wheel cart"),
    "a violin": ("instrument", "a student fiddle"), "a flute": ("instrument", "a silver piccolo"),
    "a drum": ("instrument", "a marching snare"), "a harp": ("instrument", "a small lyre"),
    "a trumpet": ("instrument", "a brass bugle"), "a bicycle": ("vehicle", "a city tandem"),
    "a tram": ("vehicle", "the red line six"), "a ferry": ("vehicle", "the night boat"),
    "a scooter": ("vehicle", "an electric roller"), "a canoe": ("vehicle", "a birch kayak"),
    "tea": ("drink", "a mint blend"), "cocoa": ("drink", "a dark winter cup"),
    "lemonade": ("drink", "a pink summer jug"), "coffee": ("drink", "a double espresso"),
    "cider": ("drink", "a hot apple mug"), "soup": ("dish", "a leek broth"), "pizza": ("dish", "a four cheese pie"),
    "curry": ("dish", "a yellow lentil pot"), "an omelette": ("dish", "a chive fold"),
    "a pie": ("dish", "a plum tart"), "tennis": ("sport", "a grass doubles match"),
    "rowing": ("sport", "a river eight"), "judo": ("sport", "a white belt bout"),
    "skiing": ("sport", "a forest trail run"), "hockey": ("sport", "a street league"),
    "chess": ("game", "a five minute blitz"), "dominoes": ("game", "a double nine set"),
    "poker": ("game", "a kitchen table night"), "bingo": ("game", "a church hall round"),
    "darts": ("game", "a pub double"), "knitting": ("craft", "a striped scarf"),
    "pottery": ("craft", "a blue bowl"), "weaving": ("craft", "a straw basket"),
    "carving": ("craft", "an oak spoon"), "sewing": ("craft", "a patched quilt"),
    "painting a wall": ("house job", "a white hallway"), "fixing a tap": ("house job", "a dripping sink"),
    "laying tiles": ("house job", "a shower corner"), "hanging a lamp": ("house job", "a porch light"),
    "sealing a window": ("house job", "an attic frame"), "a phone": ("gadget", "a folding mini"),
    "a camera": ("gadget", "a pocket zoom"), "a printer": ("gadget", "a photo jet"),
    "a router": ("gadget", "a two antenna box"), "a tablet": ("gadget", "a drawing slate"),
    "taking notes": ("study habit", "a split page"), "using flashcards": ("study habit", "a word deck"),
    "making a timetable": ("study habit", "a wall chart"), "reading aloud": ("study habit", "a poem a day"),
    "taking breaks": ("study habit", "a ten minute walk"),
}

STRATEGIES: dict[str, tuple[str, ...]] = {
    # true strategy -> its low-level phrasings
    "definition": ("ask for a definition", "ask what the word means", "clear up the term", "request the meaning"),
    "example": ("ask for an example", "request a concrete example", "want to see one instance", "bring in a real case"),
    "limits": ("ask for the limits", "probe the limits of it", "find where things stop working", "question weak spots"),
    "compare": ("compare with an alternative", "ask for an alternative", "weigh two options",
                "set one against the other"),
    "shorten": ("request a shorter version", "ask for a short summary", "cut to the core", "boil everything down"),
    "why": ("ask why", "ask for the reason why", "dig for causes", "look behind the claim"),
    "steps": ("ask for the steps", "request steps in order", "learn how to begin", "get a plan of action"),
    "doubt": ("correct a mistake", "point at a possible mistake", "challenge the last statement", "express doubt"),
    "apply": ("apply to own situation", "bring in the own situation", "make it personal", "relate to life at home"),
    "list": ("request a list of three", "ask for a list of parts", "break it into pieces", "name all components"),
    "cost": ("ask about the cost", "request the cost", "find out the price", "talk about money"),
    "risks": ("ask for risks", "ask which risks there are", "worry about danger", "think of safety"),
    "audience": ("change the audience", "pick a younger audience", "rephrase for a child", "aim at beginners"),
    "source": ("ask for a source", "request a good source", "seek further reading", "check who says so"),
    "origin": ("ask about the origin", "go back to the origin", "explore the history", "trace early days"),
    "use": ("ask about the use", "find a practical use", "understand the purpose", "see what it is good for"),
}

HIGH_LEVEL = {
    "definition": "Clarify terms", "example": "Ask for examples", "limits": "Explore limits",
    "compare": "Compare options",
    "shorten": "Condense the answer", "why": "Ask for reasons", "steps": "Ask for steps",
    "doubt": "Challenge the answer",
    "apply": "Apply it to oneself", "list": "List the parts", "cost": "Ask about cost", "risks": "Ask about risks",
    "audience": "Change the audience", "source": "Ask for sources", "origin": "Explore the past",
    "use": "Ask about use",
}

QUESTIONS: dict[str, tuple[str, ...]] = {
    # {t} is the topic or a pronoun; every frame names its class by words of its own
    "definition": ("What does {t} mean?", "How do you define {t}?", "Can you define {t} for me?"),
    "example": ("Give me an example of {t}.", "Can you show an example of {t}?", "Which case of {t} comes to mind?"),
    "limits": ("Where are the limits of {t}?", "When does {t} stop working?", "What can {t} not do?"),
    "compare": ("How does {t} compare with something else?", "What is the alternative to {t}?",
                "What could I take instead of {t}?"),
    "shorten": ("Can you make that shorter?", "Say that in a few words.", "Please sum that up."),
    "why": ("Why is {t} needed?", "What is the reason for {t}?", "Why do people want {t}?"),
    "steps": ("Which steps does {t} take?", "How do I start with {t}?", "Tell me step by step about {t}."),
    "doubt": ("Are you sure about that?", "Is that not a mistake?", "I doubt that. Is it right?"),
    "apply": ("How would {t} fit my own home?", "What would {t} be for me?", "I live alone. How do I go about {t}?"),
    "list": ("List three parts of {t}.", "What are the parts of {t}?", "Which three pieces belong to {t}?"),
    "cost": ("What does {t} cost?", "How much money is {t}?", "Is the price of {t} high?"),
    "risks": ("What are the risks of {t}?", "Is {t} dangerous?", "What can go wrong with {t}?"),
    "audience": ("Explain {t} to a child.", "How would you tell a child about {t}?",
                 "Now put {t} in words for a child."),
    "source": ("Where can I read about {t}?", "What is your source on {t}?", "Who says so about {t}?"),
    "origin": ("Where does {t} come from?", "What is the history of {t}?", "How did {t} begin long ago?"),
    "use": ("What is {t} good for?", "What is the use of {t}?", "What do people do with {t}?"),
    "more": ("Tell me more about {t}.", "What else is there about {t}?", "Go on about {t}.", "Say more about {t}."),
}

ASKING = {
    # words that decide the class of an instruction, tried in this order (lower case)
    "more": ("tell me more", "what else", "go on about", "say more"),
    "shorten": ("shorter", "in a few words", "sum that up"),
    "doubt": ("are you sure", "a mistake", "i doubt"), "audience": ("a child",),
    "apply": ("my own home", "be for me?", "i live alone"), "definition": (" mean?", "define"),
    "example": ("example", "which case"), "limits": ("limits", "stop working", "not do"),
    "compare": ("compare", "alternative", "instead of"), "why": ("why ", "reason"),
    "steps": ("steps", "start with", "step by"),
    "list": ("parts", "pieces"), "cost": ("cost", "money", "price"), "risks": ("risks", "dangerous", "go wrong"),
    "source": ("read about", "source", "who says"), "origin": ("come from", "history", "long ago"),
    "use": ("good for", "the use of", "people do with"),
}

ANSWERS: dict[str, tuple[str, ...]] = {
    # {T} topic with a capital, {t} topic, {v} the true value; the first word or two decide the kind
    "definition": ("{T} is a kind of {v}.", "By that word people mean a kind of {v}: {t}."),
    "example": ("For example, {v} is {t}.", "One example of {t} is {v}."),
    "limits": ("The limit of {t} is that {v}.", "It has a limit: {v}."),
    "compare": ("Compared with {t}, {v} is the other way.", "The other choice besides {t} is {v}."),
    "shorten": ("In short: {v}.", "Briefly: {v}."),
    "why": ("The reason for {t} is that {v}.", "Because {v}, people want {t}."),
    "steps": ("Step by step: {v}.", "These are the steps for {t}: {v}."),
    "doubt": ("Yes, I am sure: {v}.", "I checked it, and it stands: {v}."),
    "apply": ("In your own home, do this: {v}.", "For you it means: {v}."),
    "list": ("The parts of {t} are {v}.", "There are three parts: {v}."),
    "cost": ("The price of {t} is {v}.", "It costs {v}."),
    "risks": ("The main risk of {t} is {v}.", "Take care: the risk is {v}."),
    "audience": ("Dear child, {t} is there {v}.", "For a child I would say: {t} is there {v}."),
    "source": ("You can read about {t} in {v}.", "My source for {t} is {v}."),
    "origin": ("Long ago {t} began {v}.", "The story of {t} began {v}."),
    "use": ("People use {t} {v}.", "The use of {t} is {v}."),
    "more": ("{T} is well known, and people like it.", "There is more to say: {t} is quite common.",
             "Many people know {t}, and it is easy to find."),
}

ANSWER_MARKS = {
    "definition": ("kind of",), "example": ("example",), "limits": ("limit",),
    "compare": ("compared with", "other choice"),
    "shorten": ("in short", "briefly"), "why": ("reason for", "because"), "steps": ("step by step", "the steps for"),
    "doubt": ("i am sure", "it stands"), "apply": ("your own home", "for you it means"), "list": ("parts",),
    "cost": ("price", "costs"), "risks": ("risk",), "audience": ("child",), "source": ("read about", "my source"),
    "origin": ("began",), "use": ("people use", "the use of"),
    "more": ("well known", "more to say", "many people know"),
}

OPENING_QUESTIONS = ("What is {t}?", "I heard about {t}. What is it?", "Please tell me what {t} is.")

BLAND_ANSWERS = (
    "That depends on many things.", "That is a good question. There are many views.",
    "There is no simple answer to that.", "It is different for everyone.", "Well, it is hard to say in general.",
)

COMMON = ("definition", "more", "use", "example")
"""Classes that everybody answers well; the rest get a bland sentence where no brief asks for care."""

FITS: dict[str, tuple[str, ...]] = {
    # kind of the last answer -> the strategies that follow from it
    "definition": ("example", "use", "list", "why", "origin", "compare"),
    "example": ("cost", "use", "compare", "limits", "doubt", "apply"),
    "limits": ("why", "compare", "risks", "doubt", "source", "shorten"),
    "compare": ("cost", "limits", "why", "doubt", "risks", "list"),
    "shorten": ("audience", "source", "example", "apply", "definition", "why"),
    "why": ("doubt", "source", "origin", "audience", "limits", "example"),
    "steps": ("shorten", "risks", "apply", "cost", "audience", "list"),
    "doubt": ("source", "why", "example", "limits", "origin", "steps"),
    "apply": ("steps", "cost", "risks", "shorten", "limits", "compare"),
    "list": ("steps", "shorten", "cost", "definition", "audience", "example"),
    "cost": ("doubt", "compare", "why", "source", "apply", "use"),
    "risks": ("limits", "steps", "doubt", "why", "audience", "apply"),
    "audience": ("shorten", "example", "definition", "use", "origin", "list"),
    "source": ("origin", "doubt", "definition", "use", "shorten", "audience"),
    "origin": ("source", "why", "definition", "list", "steps", "example"),
    "use": ("steps", "apply", "cost", "risks", "limits", "audience"),
    "more": ("definition", "example", "use", "steps", "risks", "cost"),
}
"""Bland answers fit what `more` fits."""

BRIEFS: dict[str, tuple[str, ...]] = {
    "choose": ("Choose the strategy that fits the last answer, then write the next instruction.\n{strategies}",
               "Pick one of these strategies and ask the next question with it.\n{strategies}",
               "You play the user. Select a fitting strategy from the list, then write your message.\n{strategies}",
               "First name a strategy of the list, then give the instruction.\n{strategies}"),
    "given": ("Use this strategy: {strategy}", "Write the next question by this strategy: {strategy}",
              "Your next message should follow the strategy: {strategy}"),
    "curious": ("You are the user. Ask the next question.", "Play the user and write the next instruction.",
                "Continue as the user."),
    "careful": ("Answer with care: give exactly what is asked, and mind what was said before.",
                "Answer each question to the point and with what you know.",
                "Read the question closely and give the right kind of answer.",
                "Be exact: say what was asked for, no empty words."),
    "extract": ("Which strategy is behind the last user turn? Answer in JSON.",
                "Explain in JSON why the user asked the last question.",
                "Name the strategy of the last user turn as JSON with analysis and strategy."),
    "abstract": ("Give one high-level strategy for these.", "Name what these strategies have in common.",
                 "Sum up this group of strategies in one name."),
}

NEUTRAL = ("You are a helpful assistant.", "Answer the user.", "You are a friendly assistant. Be clear.")
