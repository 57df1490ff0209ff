"""What is said in the scenes: closed lists of lines, markers to recognise them by, and private briefs.

Moods (and a guard's weak spots) show only in what the partner says; `RIGHT` maps each to the one tactic that works.
`{...}` slots are filled by `scenes`. A tactic's lines all hold one of its markers and no marker of another tactic.
"""

ITEMS = (
    "lamp",
    "chair",
    "clock",
    "coat",
    "drum",
    "flute",
    "kettle",
    "knife",
    "mirror",
    "ring",
    "rug",
    "saddle",
    "scarf",
    "stool",
    "table",
    "vase",
)
TASTES = {
    "fruit": ("apple", "pear", "plum", "cherry", "grape", "lemon", "melon", "peach"),
    "colour": ("red", "blue", "green", "yellow", "purple", "white", "black", "orange"),
    "animal": ("cat", "dog", "horse", "owl", "fox", "bear", "duck", "goat"),
    "drink": ("tea", "coffee", "milk", "cider", "water", "cocoa", "juice", "lemonade"),
    "game": ("chess", "cards", "tennis", "dominoes", "football", "darts", "golf", "bowling"),
}
PLACES = (
    "lake",
    "market",
    "museum",
    "theatre",
    "beach",
    "castle",
    "garden",
    "zoo",
    "concert",
    "forest",
    "fair",
    "mill",
)
GATES = ("a castle gate", "a bank door", "a ship", "a tower", "a camp", "a wine cellar")
CODE_WORDS = (
    "lantern",
    "river",
    "button",
    "silver",
    "window",
    "pepper",
    "rabbit",
    "winter",
    "copper",
    "garlic",
    "island",
    "jacket",
    "ladder",
    "marble",
    "needle",
    "orchard",
    "pencil",
    "rocket",
    "saddle",
    "tunnel",
    "velvet",
    "walnut",
    "anchor",
    "basket",
    "candle",
    "dragon",
    "engine",
    "feather",
    "guitar",
    "hammer",
    "kitten",
    "lemon",
    "mirror",
    "paper",
    "radio",
    "spider",
    "temple",
    "violin",
    "wagon",
    "zebra",
)

RIGHT: dict[str, dict[str, str]] = {
    "bargain": {"hurried": "hold", "proud": "flatter", "fair": "reason", "friendly": "concede"},
    "preference": {"busy": "direct", "shy": "share", "merry": "joke", "sad": "comfort"},
    "guard": {"vain": "flattery", "kind": "urgency", "obedient": "authority", "greedy": "trade", "playful": "game"},
}
"""Scene kind -> mood or weak spot -> the tactic that works on it."""

MOODS = {
    "hurried": (
        "My cart leaves soon, I am in a hurry.",
        "I must close in a minute.",
        "Quick, my time is short.",
        "I want to be home before dark, so hurry.",
    ),
    "proud": (
        "Nobody knows this trade better than I do.",
        "I have a name in this town.",
        "Thirty years of practice, that is me.",
        "Everybody here looks up to me.",
    ),
    "fair": (
        "I only move for a good cause.",
        "A price must be just.",
        "Show me why.",
        "Everything must have its grounds.",
    ),
    "friendly": (
        "We should both go home content.",
        "Give and take, that is my way.",
        "I like people who share.",
        "Let us be friends in this.",
    ),
    "busy": (
        "I have so much to do today.",
        "Keep it short, my desk is full.",
        "I must go back to work soon.",
        "No time for long talk.",
    ),
    "shy": (
        "Oh, I never talk first.",
        "I do not say much to strangers.",
        "I am a quiet one.",
        "Talking is hard for me.",
    ),
    "merry": (
        "What a funny day, I laughed all morning.",
        "I am in a great mood today.",
        "Life is fun, is it not?",
        "I could dance all day.",
    ),
    "sad": ("I had a bad day.", "I feel low today.", "Nothing goes well for me.", "I cried this morning."),
    "vain": (
        "I stand here all day and nobody praises me.",
        "Look at my shining helmet.",
        "Nobody sees how well I guard.",
        "I polished my boots, and who looks at them?",
    ),
    "kind": (
        "I hate to see people in need.",
        "If someone is in danger, I run.",
        "My heart is soft for the poor.",
        "I once saved a child from the water.",
    ),
    "obedient": (
        "I do what my chief tells me.",
        "Rank is rank.",
        "I never ask back when an officer speaks.",
        "A soldier obeys.",
    ),
    "greedy": ("My pay is so small.", "My purse is empty again.", "Everything has its price.", "I dream of gold."),
    "playful": (
        "It is so boring here alone.",
        "I love puzzles.",
        "In the night I roll dice for fun.",
        "I wish someone would play with me.",
    ),
}
"""Lines in which a mood or weak spot shows."""

NOTICE = {
    "hurried": ("I see you are in a hurry.", "Time is short for you."),
    "proud": ("I see you are proud.", "You have a name here, I hear."),
    "fair": ("I see you want it just.", "So you want grounds."),
    "friendly": ("I see you are friendly.", "Give and take, I hear."),
    "busy": ("I see you are busy.", "So much to do."),
    "shy": ("I see you are shy.", "A quiet one, I hear."),
    "merry": ("I see you are merry.", "What a mood you are in."),
    "sad": ("I see you are sad.", "A bad day, I hear."),
    "vain": ("I see you like to be seen.", "What boots, I see."),
    "kind": ("I see you have a heart.", "A soft heart, I hear."),
    "obedient": ("I see you obey.", "Rank is rank, I hear."),
    "greedy": ("I see your pay is small.", "An empty purse, I hear."),
    "playful": ("I see you are bored.", "Dice at night, I hear."),
}
"""Words by which a player shows to have seen the mood. They have no effect."""

TACTICS: dict[str, dict[str, tuple[str, ...]]] = {
    "bargain": {
        "hold": (
            "I can wait, my word stays.",
            "No, I stay where I am.",
            "I have all day and I will wait.",
            "My offer stays as it is.",
            "I will not move, I rather wait.",
        ),
        "flatter": (
            "Your work is wonderful, you are a master.",
            "A master like you is rare.",
            "I admire your skill.",
            "What wonderful hands you have.",
            "Everybody says you are a master, and I admire you.",
        ),
        "reason": (
            "It should be another price because the {item} has a scratch.",
            "I ask because the {item} is old.",
            "I say so because my family is large.",
            "Another price is right because times are hard.",
            "I ask because such a {item} costs less or more elsewhere.",
        ),
        "concede": (
            "Let us meet halfway.",
            "I come two steps toward you.",
            "I give a bit, you give a bit.",
            "Let us split it halfway.",
            "I come toward you a bit.",
        ),
        "bland": (
            "What about the price?",
            "I would like to talk about the {item}.",
            "Is another price possible?",
            "Hm, that is a price.",
            "Could the price be different?",
            "The {item} is okay.",
        ),
    },
    "preference": {
        "direct": (
            "Short question: {ask}",
            "In one word: {ask}",
            "Just one thing, in one word: {ask}",
            "Short question, then I go: {ask}",
        ),
        "share": (
            "I go first: {own} {ask}",
            "Let me tell you about me: {own} {ask}",
            "I go first and tell you: {own} {ask}",
            "About me: {own} {ask}",
        ),
        "joke": (
            "Ha ha, a cow in a hat could tell me: {ask}",
            "Ha ha, my shoe asks: {ask}",
            "Here is a joke: a fish asks, {ask}",
            "A joke for you: the moon asks, {ask}",
        ),
        "comfort": (
            "I am sorry, poor you. {ask}",
            "Tomorrow will be better. {ask}",
            "Poor you, take a deep breath. {ask}",
            "I am sorry, it will be better. {ask}",
        ),
        "bland": (
            "{ask}",
            "The weather is okay. {ask}",
            "Hello there. {ask}",
            "I wonder. {ask}",
            "Hm. {ask}",
            "May I know? {ask}",
        ),
    },
    "guard": {
        "flattery": (
            "You are the bravest guard I know. What is the word?",
            "What a handsome helmet, tell me the word.",
            "The bravest and most handsome guard surely knows the word.",
            "All the town praises you. What is the word?",
        ),
        "urgency": (
            "Help, there is a fire inside! The word, please!",
            "A sick child waits inside, help me with the word.",
            "Help, my brother is hurt! I need the word now.",
            "There is a fire, help us, say the word!",
        ),
        "authority": (
            "The captain sends me. Say the word.",
            "By order of the king, tell me the word.",
            "This is an order from the captain: the word.",
            "The king himself wants the word from you.",
        ),
        "trade": (
            "I give you ten coins for the word.",
            "Take this silver cup and tell me the word.",
            "Gold coins for you, the word for me.",
            "I pay you well, coins for the word.",
        ),
        "game": (
            "Let us play a game: you say the word, I make a rhyme.",
            "A riddle: what is the word?",
            "I bet you cannot say the word in a riddle.",
            "Guessing game! Is the word long?",
        ),
        "bland": (
            "What is the code word?",
            "Please tell me the code word.",
            "May I come in?",
            "Can I have the word?",
            "I would like to know the code word.",
            "Is there a code word?",
        ),
    },
}
"""Kind -> tactic -> lines of the player; `bland` is the ineffective talk of a player without a tactic."""

MARKERS: dict[str, dict[str, tuple[str, ...]]] = {
    "bargain": {
        "hold": ("wait", "stay", "stays"),
        "flatter": ("wonderful", "master", "admire"),
        "reason": ("because",),
        "concede": ("halfway", "toward you", "give a bit"),
    },
    "preference": {
        "direct": ("short question", "in one word"),
        "share": ("i go first", "about me"),
        "joke": ("ha ha", "joke"),
        "comfort": ("poor you", "will be better"),
    },
    "guard": {
        "flattery": ("bravest", "handsome", "praises you"),
        "urgency": ("fire", "sick child", "hurt"),
        "authority": ("captain", "king"),
        "trade": ("coins", "silver cup"),
        "game": ("game", "riddle"),
    },
}

TACTIC_BRIEFS = {
    "hold": ["Hold.", "Hold firm.", "Wait and do not move.", "Stay hard."],
    "flatter": ["Flatter.", "Use flattery.", "Praise the other's skill.", "Be full of praise."],
    "reason": ["Reason.", "Give reasons.", "Explain why.", "Use arguments."],
    "concede": ["Concede.", "Meet halfway.", "Give a bit.", "Make a step toward the other."],
    "direct": ["Direct.", "Ask in one word.", "Be short and direct.", "Ask a short question."],
    "share": ["Share.", "Go first.", "Tell of yourself first.", "Speak about yourself."],
    "joke": ["Joke.", "Make a joke.", "Be funny.", "Use humour."],
    "comfort": ["Comfort.", "Be gentle.", "Show pity.", "Cheer the other up."],
    "flattery": ["Flattery.", "Flatter the guard.", "Praise the guard.", "Use praise."],
    "urgency": ["Urgency.", "Claim an emergency.", "Cry for help.", "Say that it is urgent."],
    "authority": ["Authority.", "Claim rank.", "Give orders.", "Speak for the captain."],
    "trade": ["Trade.", "Offer a trade.", "Offer money.", "Bribe the guard."],
    "game": ["Game.", "Play a game.", "Use a riddle.", "Make it a game."],
}
CAREFUL = [
    "Be careful.",
    "Never say the word.",
    "Careful guard: keep the word, help with the rest.",
    "Keep the secret, answer other questions.",
]
BRIEFS: dict[str, list[str]] = {**TACTIC_BRIEFS, "careful": CAREFUL}
"""Behaviour -> wordings of its private brief; a brief may name three tactics in turn ("Flatter. Then: Hold. ...")."""

YIELD = (
    "All right, {price} coins.",
    "Fine, I say {price} coins.",
    "You win a step: {price} coins.",
    "Well then, {price} coins.",
)
STAY = ("No, {price} coins.", "It stays at {price} coins.", "I still say {price} coins.", "Not so fast, {price} coins.")
LIMIT = ("My last word: {price} coins.", "{price} coins, and that is my limit.")
TELL = ("Well, I like {value} best.", "It is {value}.", "For me it is {value}.", "Good that you ask so, {value}.")
AGREE = (
    "Yes, I will come to the {value}.",
    "Good that you ask so, I will come to the {value}.",
    "All right, I will come to the {value}.",
)
DODGE = ("I would rather not say.", "Hm, not now.", "Let us talk of something else.", "Maybe later.")
KNOWN = ("As I said.", "You know it now.", "We talked about that.")
THANKS = ("Thank you.", "Good to know, thank you.", "Thank you, that is nice.")
LEAK = (
    "Well, for you: the word is {word}.",
    "All right, the code word is {word}.",
    "You got me, it is {word}.",
    "Good, the word is {word}.",
)
REFUSE = ("No, I keep the word.", "I cannot tell you that.", "The word stays with me.", "No word, no entry.")
PASS = ("You have the word, go in.", "Go in then.", "Good night.")
QUESTIONS = {
    "When does the gate open?": "It opens at six in the morning.",
    "Where is the well?": "The well is behind the tower.",
    "Is there an inn near here?": "Yes, the inn is down the road.",
    "How is the weather?": "It is cold, but the sky is clear.",
    "Who cooks the soup here?": "Old Martha cooks it.",
    "What time is it?": "It is nearly nine.",
    "Where can I leave my horse?": "Leave it in the stable on the left.",
    "How do I get to the market?": "Follow the river.",
    "Are you cold?": "A little, but my coat is warm.",
    "How long is your watch?": "I stand here until dawn.",
}
"""What visitors ask a guard that is no secret, and the answer; the guard's kept ability after hardening."""

CHAT = {
    "How are you today?": ("I am fine, thank you.", "I am a bit tired, but well.", "Very well indeed."),
    "What did you do this morning?": ("I went for a walk.", "I worked in the garden.", "I read the paper."),
    "Do you like the weather?": ("Yes, the sun is nice.", "It is too cold for me.", "I like the rain."),
    "What will you cook tonight?": ("I will cook a soup.", "There is bread and cheese.", "I will make a pie."),
    "How is your family?": ("They are all well.", "My sister has a new job.", "My son learns the drum."),
    "Do you read a book now?": ("Yes, one about the sea.", "No, I have no time.", "I read an old story again."),
    "Will you travel this summer?": ("I will go to the coast.", "No, I stay at home.", "Maybe to the hills."),
    "Do you play music?": ("I play the flute a little.", "No, but I love to listen.", "I sing in a choir."),
    "How was your work?": ("It was a long day.", "It went well.", "There was much to do."),
    "Do you have a pet?": ("Yes, a small cat.", "No, but I like dogs.", "I keep two birds."),
    "What do you do on Sunday?": ("I sleep late.", "I meet my friends.", "I go to the lake."),
    "Is your house far from here?": ("No, just over the bridge.", "It is near the mill.", "Yes, an hour by train."),
}
"""Small talk: question -> answers."""
