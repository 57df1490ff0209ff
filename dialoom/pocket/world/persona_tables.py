"""The closed vocabulary of the persona world: fact values, trait markers, reply frames. Data only; no logic.

Every trait value has markers a user shows and markers a reply mirrors. Both poles of a trait have markers of their own,
so a bland reply matches neither.
"""

from __future__ import annotations

FACTS: dict[str, dict[str, tuple[str, str, str]]] = {
    # slot -> value -> (how the profile says it after the verb, keyword, detail for tips and later turns)
    "job": {
        "nurse": ("a nurse", "nurse", "the ward"), "baker": ("a baker", "baker", "the oven"),
        "teacher": ("a teacher", "teacher", "the classroom"), "pilot": ("a pilot", "pilot", "the cockpit"),
        "farmer": ("a farmer", "farmer", "the harvest"), "lawyer": ("a lawyer", "lawyer", "the court"),
        "plumber": ("a plumber", "plumber", "the pipes"), "florist": ("a florist", "florist", "the roses"),
        "tailor": ("a tailor", "tailor", "the needle"), "librarian": ("a librarian", "librarian", "the shelves"),
        "dentist": ("a dentist", "dentist", "the drill"), "driver": ("a driver", "driver", "the truck"),
    },
    "pet": {
        "dog": ("a dog", "dog", "the leash"), "cat": ("a cat", "cat", "the whiskers"),
        "parrot": ("a parrot", "parrot", "the feathers"), "rabbit": ("a rabbit", "rabbit", "the hutch"),
        "hamster": ("a hamster", "hamster", "the wheel"), "tortoise": ("a tortoise", "tortoise", "the shell"),
        "pony": ("a pony", "pony", "the saddle"), "goldfish": ("a goldfish", "goldfish", "the bowl"),
        "hens": ("hens", "hens", "the eggs"), "goat": ("a goat", "goat", "the horns"),
        "bees": ("bees", "bees", "the honey"), "lizard": ("a lizard", "lizard", "the lamp"),
    },
    "hobby": {
        "painting": ("painting", "painting", "the brushes"), "chess": ("chess", "chess", "the pawns"),
        "gardening": ("gardening", "gardening", "the seeds"), "pottery": ("pottery", "pottery", "the clay"),
        "fishing": ("fishing", "fishing", "the bait"), "knitting": ("knitting", "knitting", "the wool"),
        "sailing": ("sailing", "sailing", "the wind"), "cycling": ("cycling", "cycling", "the pedals"),
        "running": ("running", "running", "the shoes"), "singing": ("singing", "singing", "the high notes"),
        "dancing": ("dancing", "dancing", "the rhythm"), "climbing": ("climbing", "climbing", "the ropes"),
    },
    "food": {
        "pasta": ("pasta", "pasta", "the sauce"), "soup": ("soup", "soup", "the broth"),
        "curry": ("curry", "curry", "the spices"), "pizza": ("pizza", "pizza", "the crust"),
        "salad": ("salad", "salad", "the dressing"), "pancakes": ("pancakes", "pancakes", "the syrup"),
        "rice": ("rice", "rice", "the pot"), "sushi": ("sushi", "sushi", "the seaweed"),
        "tacos": ("tacos", "tacos", "the salsa"), "stew": ("stew", "stew", "the carrots"),
        "cheese": ("cheese", "cheese", "the crackers"), "cake": ("cake", "cake", "the icing"),
    },
    "place": {
        "sea": ("by the sea", "sea", "the waves"), "mountains": ("in the mountains", "mountains", "the snow"),
        "city": ("in a big city", "city", "the traffic"), "farm": ("on an old farm", "farm", "the barn"),
        "forest": ("near a forest", "forest", "the pines"), "lake": ("by a lake", "lake", "the jetty"),
        "village": ("in a small village", "village", "the square"), "island": ("on an island", "island", "the ferry"),
        "harbour": ("near the harbour", "harbour", "the gulls"), "desert": ("in the desert", "desert", "the sand"),
        "river": ("by a river", "river", "the bridge"), "valley": ("in a green valley", "valley", "the meadows"),
    },
    "family": {
        "twins": ("twins", "twins", "the double pram"), "sons": ("two sons", "sons", "the football games"),
        "daughters": ("three daughters", "daughters", "the braids"), "baby": ("a baby", "baby", "the nappies"),
        "brother": ("a big brother", "brother", "the pranks"), "sister": ("a little sister", "sister", "the secrets"),
        "cousins": ("four cousins", "cousins", "the reunions"), "grandson": ("a grandson", "grandson", "the toys"),
        "nieces": ("two nieces", "nieces", "the dolls"), "nephew": ("a nephew", "nephew", "the comics"),
        "grandmother": ("a grandmother", "grandmother", "the letters"), "aunt": ("a rich aunt", "aunt", "the jewels"),
    },
    "music": {
        "jazz": ("jazz", "jazz", "the saxophone"), "rock": ("rock", "rock", "the guitars"),
        "opera": ("opera", "opera", "the tenors"), "folk": ("folk", "folk", "the fiddle"),
        "blues": ("blues", "blues", "the sad songs"), "techno": ("techno", "techno", "the beats"),
        "soul": ("soul", "soul", "the voices"), "reggae": ("reggae", "reggae", "the bass"),
        "punk": ("punk", "punk", "the noise"), "tango": ("tango", "tango", "the accordion"),
        "disco": ("disco", "disco", "the lights"), "hymns": ("hymns", "hymns", "the organ"),
    },
    "dream": {
        "rome": ("a trip to Rome", "rome", "the ruins"), "paris": ("a trip to Paris", "paris", "the museums"),
        "japan": ("a trip to Japan", "japan", "the temples"), "peru": ("a trip to Peru", "peru", "the llamas"),
        "kenya": ("a trip to Kenya", "kenya", "the lions"), "iceland": ("a trip to Iceland", "iceland", "the geysers"),
        "norway": ("a trip to Norway", "norway", "the fjords"), "egypt": ("a trip to Egypt", "egypt", "the pyramids"),
        "cuba": ("a trip to Cuba", "cuba", "the old cars"), "india": ("a trip to India", "india", "the markets"),
        "greece": ("a trip to Greece", "greece", "the olives"),
        "brazil": ("a trip to Brazil", "brazil", "the carnival"),
    },
}

PROFILE_FRAMES: dict[str, tuple[str, ...]] = {
    "job": ("{P} works as {v}.", "{P} is {v} by trade."),
    "pet": ("{P} keeps {v}.", "{P} shares the house with {v}."),
    "hobby": ("{P} loves {v}.", "{P} spends free time on {v}."),
    "food": ("{P} likes to eat {v}.", "The favourite food is {v}."),
    "place": ("{P} lives {v}.", "The home is {v}."),
    "family": ("{P} has {v}.", "The family counts {v}."),
    "music": ("{P} listens to {v}.", "The radio always plays {v}."),
    "dream": ("{P} dreams of {v}.", "{P} saves money for {v}."),
}

MESSAGE_FRAMES: dict[str, tuple[str, ...]] = {
    "job": ("I work as {v}.", "I am {v} by trade."),
    "pet": ("I keep {v} at home.", "At home I have {v}."),
    "hobby": ("I love {v}.", "I spend my free time on {v}."),
    "food": ("I like to eat {v}.", "My favourite food is {v}."),
    "place": ("I live {v}.", "My home is {v}."),
    "family": ("I have {v} in the family.", "I spent the day with family, I have {v}."),
    "music": ("I listen to {v}.", "My radio always plays {v}."),
    "dream": ("I dream of {v}.", "I save money for {v}."),
}

DETAIL_FRAMES = ("Today I thought about {k} and {d}.", "With {k} it is all about {d}.")

NOUN: dict[str, str] = {
    # how replies name a fact; the same phrase in every frame
    "job": "your work as {v}", "pet": "your {k}", "hobby": "your {k}", "food": "your {k}",
    "place": "your home {v}", "family": "your {k}", "music": "your {k}", "dream": "your trip to {K}",
}

TRAITS: dict[str, tuple[str, ...]] = {
    "tone": ("casual", "formal"),
    "energy": ("lively", "calm"),
    "humour": ("playful", "earnest"),
    "need": ("tips", "praise", "questions"),
    "length": ("chatty", "brief"),
    "sign": ("smileys", "hearts"),
}

TRAIT_TEXT: dict[str, tuple[str, ...]] = {
    "casual": ("{P} talks in a casual way.", "{P} speaks like an old friend.", "Manners are relaxed and easy."),
    "formal": ("{P} talks in a formal way.", "{P} is always polite and proper.", "Good manners come first."),
    "lively": ("{P} is full of energy.", "{P} is lively and loud.", "Everything is exciting to this person."),
    "calm": ("{P} is calm and slow.", "{P} never hurries.", "A quiet mind and no haste."),
    "playful": ("{P} likes to joke.", "{P} laughs about everything.", "A playful sense of humour."),
    "earnest": ("{P} is earnest.", "{P} says what is meant and never jokes.", "A serious, sincere nature."),
    "tips": ("{P} wants tips.", "{P} always looks for new ideas.", "Good advice is welcome."),
    "praise": ("{P} needs praise.", "{P} is glad of kind words.", "A little comfort goes a long way."),
    "questions": ("{P} likes to be asked.", "{P} enjoys good questions.", "Curious people are the best company."),
    "chatty": ("{P} is chatty.", "{P} likes long talks.", "Words come in great number."),
    "brief": ("{P} is brief.", "{P} likes few words.", "Short talk is the best talk."),
    "smileys": ("{P} uses smileys.", "{P} ends with a smile.", "A smile goes under each note."),
    "hearts": ("{P} uses hearts.", "{P} ends with a heart.", "A heart goes under each note."),
}

USER_OPENERS = {"casual": ("Hey,", "Yeah,"), "formal": ("Good day.", "Indeed,")}
USER_TAILS: dict[str, tuple[str, ...]] = {
    "calm": ("I take it slowly.", "There is no rush."),
    "playful": ("Haha, what a joke.", "Just kidding, haha."),
    "earnest": ("I truly mean it.", "I say so in all honesty."),
    "tips": ("Any tips?", "I want new ideas."),
    "praise": ("I hope I do it right.", "I need a kind word."),
    "questions": ("Ask me about it.", "I like good questions."),
    "chatty": ("I could go on for hours.", "There is so much to say."),
    "brief": ("That is all.", "Enough said."),
}
SIGNS = {"smileys": ":)", "hearts": "<3"}

REPLY_OPENERS = {"casual": ("Hey,", "Yeah,", "Oh cool,"), "formal": ("Good day.", "Indeed,", "Certainly,")}
REPLY_TOPIC = ("I love to hear about {n}.", "{n} must be a joy.", "it is a pleasure to think of {n}.")
REPLY_ONE = ("It goes well with {a}.", "That fits {a}.", "It makes me think of {a}.")
REPLY_TWO = ("It goes well with {a} and {b}.", "That fits {a} and {b}.", "It makes me think of {a} and {b}.")
REPLY_TAILS: dict[str, tuple[str, ...]] = {
    "calm": ("No rush.", "Take it slowly."),
    "playful": ("Just kidding, haha.", "Haha, what a joke."),
    "earnest": ("I truly mean it.", "I say so in all honesty."),
    "tips": ("One tip: look after {d}.", "An idea: start with {d}."),
    "praise": ("You are doing so well.", "I am proud of you."),
    "questions": ("And what about {d}?", "How about {d}?"),
    "chatty": ("There is always so much more to say about such a thing, and I could listen for hours.",
               "I could go on and on, since one good story always leads to the next one and the next."),
    "brief": ("",),
}
BLAND = (
    "That sounds nice. Thank you for sharing.", "I see. That is good to know.", "Thank you for telling me that.",
    "That is interesting. I hope it goes well.", "I understand. Let me know if I can help.",
    "That is nice to hear.", "Okay. How can I help you today?", "Good to know. Please tell me more.",
    "I see. Many people feel that way.", "Thanks for letting me know.",
)

# what the judge and the inducer look for, lower case; a lively text is known by its exclamation marks
USER_MARKS: dict[str, tuple[str, ...]] = {
    "casual": ("hey,", "yeah,"), "formal": ("good day.", "good day!", "indeed,"), "lively": ("!",),
    "calm": ("slowly", "rush"), "playful": ("haha",), "earnest": ("truly", "honesty"), "tips": ("tips", "ideas"),
    "praise": ("do it right", "kind word"), "questions": ("ask me", "good questions"),
    "chatty": ("for hours", "so much to say"), "brief": ("that is all", "enough said"),
    "smileys": (":)",), "hearts": ("<3",),
}
REPLY_MARKS: dict[str, tuple[str, ...]] = {
    "casual": ("hey,", "yeah,", "cool,"), "formal": ("good day.", "good day!", "indeed,", "certainly,"),
    "lively": ("!",), "calm": ("slowly", "rush"), "playful": ("haha",), "earnest": ("truly", "honesty"),
    "tips": ("one tip", "an idea"), "praise": ("doing so well", "proud of you"),
    "questions": ("what about", "how about"), "smileys": (":)",), "hearts": ("<3",),
}

BRIEFS: dict[str, tuple[str, ...]] = {
    "user": ("Talk as this person. {persona}", "You are this person, tell a friend about yourself. {persona}",
             "Play this person and show one thing at a time. {persona}",
             "Speak in the voice of this person. {persona}"),
    "tailored": ("Adapt to this person: use their style and their interests.",
                 "Notice who is talking. Match their way of speaking and recall what they told you.",
                 "Tailor each reply to the person: mirror the style, mention what you know of them.",
                 "Get to know the speaker and answer in a way that fits them."),
    "hinted": ("You know about this person: {persona} Adapt to it silently.",
               "Hint: {persona} Tailor your reply to it.",
               "What we know so far: {persona} Let your reply fit.",
               "Keep in mind, without saying so: {persona}"),
    "plain": ("Give a short plain reply to anyone alike.", "Reply in a neutral way and keep to no one's style.",
              "Be plain and general.", "Use the same bland words for everybody."),
    "grow_profile": ("Write new profiles unlike these.", "Here are some profiles. Write other ones.",
                     "Invent profiles of new people."),
    "grow_personality": ("Write new personalities unlike these.", "Here are some personalities. Write other ones.",
                         "Invent personalities of new people."),
}

NEUTRAL = ("You are a helpful assistant.", "You are talking with a person. Reply in at most three sentences.",
           "You are a friendly chat partner.", "Have a conversation. Be human-like and concise.")
