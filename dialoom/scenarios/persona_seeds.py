"""The people that growing starts from where the user gives none: our own words. Data only; no logic.

A profile holds everyday facts and no traits, a personality traits and no facts. The surprising choice: personalities
name no one and use no pronoun, so that any of them fits any profile.
"""

from __future__ import annotations

PROFILES: tuple[str, ...] = (
    "She is thirty-four and drives a night tram. She rents two rooms above a bakery. Her twin brother lives in Oslo. "
    "She collects old postcards of bridges. On Sundays she swims in the canal. She lives on noodles and black tea. A "
    "one-eyed cat came with the flat.",
    "He is sixty-one and mends clocks in a village shop. He has been married for thirty-five years. His two grown "
    "daughters both moved abroad. He keeps nine beehives behind the church. He plays the tuba in the fire brigade "
    "band. He cannot eat nuts. His van is older than his marriage.",
    "She is nineteen and studies botany. She shares a kitchen with five other students. Her father runs a ferry. She "
    "climbs indoors three evenings a week. She bakes flatbread from her grandmother's recipe. She has never owned a "
    "television. A fern named after a film star stands on her desk.",
    "He is forty-five and teaches primary school. He is raising two sons alone. They have a rabbit and a garden full "
    "of holes. He runs the chess club on Thursdays. He grew up by the sea and sails a borrowed dinghy in August. He "
    "makes a good lentil stew. He is learning Portuguese.",
    "She is fifty-two and owns a small laundry. She came from Vietnam at the age of ten. Her husband drives a "
    "delivery van. She sings in a choir of forty. She grows chillies on the balcony. Every winter she knits a scarf "
    "for each of her three nephews. She reads crime novels on the bus.",
    "He is twenty-seven and fits solar panels. He lives with his sister and her baby. He plays goalkeeper for a "
    "Sunday team. His motorcycle is in pieces in the hall. He eats breakfast at the same stall each day. He saves for "
    "a trip along the Andes. He has a greyhound from a shelter.",
    "She is seventy-three and used to be a ship's cook. She lives in a house with four steps and no lift. She has six "
    "grandchildren. She plays bridge on Mondays and wins small sums. She feeds the hedgehogs in the yard. She still "
    "makes soup for twenty. She paints sea charts on plates.",
    "He is thirty-nine and works as a court interpreter. He speaks Polish, Arabic and English. He lives on the eighth "
    "floor with his partner. They are waiting to adopt a child. He rows on the river before work. He hunts for jazz "
    "records at flea markets. He eats no meat.",
    "She is twenty-three and works in a call centre. She draws a comic about pigeons. She lives with her parents and "
    "an old parrot. She bought a sewing machine last spring. She goes to every film with subtitles. She eats rice "
    "with everything. She wants to move to Lisbon.",
    "He is fifty-eight and farms sheep on a hill. His nearest neighbour is four miles off. He has two dogs and a "
    "daughter at university. He reads a weather diary that his grandfather kept. He plays darts on Fridays. He likes "
    "mutton pie. He has been to the capital once.",
    "She is forty-one and designs playgrounds. She is divorced and has her son every other week. They build model "
    "rockets together. She cycles to work in any weather. She has a plot in a shared garden. She loves sour plums. "
    "Her mother lives two doors away.",
    "He is thirty and cooks in a hospital. He was born in Lagos and came north for a degree. He has four sisters. He "
    "plays drums in a church hall. He walks his landlady's terrier. He is restoring a wooden radio. He drinks ginger "
    "beer and never coffee.",
    "She is sixty-six and retired from the post office. She lives on an island with one shop. Her late husband's boat "
    "lies in the shed. She keeps hens and sells eggs by the gate. She takes part in a pub quiz by video. Her "
    "favourite dish is smoked trout. She has a telescope.",
    "He is twenty-one and trains as a paramedic. He shares a flat with two cousins. He skates on the riverbank at "
    "night. He keeps stick insects in a jar. He sends money to his grandparents. He lives on dumplings. He has a scar "
    "from a fall off a roof.",
    "She is thirty-seven and tunes pianos. She travels with a tent and a folding bicycle. She has no children and "
    "eleven godchildren. She once lived in Reykjavik. She makes her own cheese. Her brother is a monk. She swims in "
    "lakes from April on.",
    "He is forty-nine and runs a petrol station on a mountain road. His wife keeps the books. They foster teenagers. "
    "He carves spoons while he waits for customers. He has a bad knee from skiing. He eats cake for breakfast. A goat "
    "sleeps behind the pumps.",
    "She is twenty-nine and writes subtitles for documentaries. She lives on a houseboat. She has a deaf sister and "
    "signs well. She grows mushrooms in the hold. She boxes twice a week. She eats mangoes by the crate. Her "
    "girlfriend works on an oil rig.",
    "He is fifty-five and repairs lifts. He has seven brothers, all in the same town. He coaches the under-twelves at "
    "handball. He owns an allotment and grows leeks for shows. He never learnt to swim. He drinks mint tea by the "
    "pot. His grandson is named after him.",
    "She is forty-six and works as a forest ranger. She lives in a cabin with a wood stove. She has an old mule. Her "
    "son plays the cello in the city. She tracks owls for a survey. She cans tomatoes each September. She learnt to "
    "fly a glider at school.",
    "He is thirty-three and sells spectacles. He lives in the suburb where he was born. He and his wife expect a "
    "first child. He plays old computer games with three friends. He keeps a tank of seahorses. He is fond of "
    "pickles. He has tickets for every home match.",
    "She is eighty and was a seamstress at the opera. She lives with her younger sister. They share one dachshund. "
    "She does the crossword in ink. She dances the tango on Wednesdays. She takes sugar in everything. A trunk of "
    "costumes stands at the foot of the bed.",
    "He is twenty-five and works on a road crew. He left school at sixteen and is back at evening classes. He looks "
    "after a blind uncle. He photographs trains. He breeds canaries in the attic. He fries fish on Fridays. He plans "
    "to walk to Santiago.",
)

PERSONALITIES: tuple[str, ...] = (
    "Warm and quick to laugh. Teases friends and likes to be teased. Forgives easily and forgets just as fast. Jumps "
    "from one subject to the next. Hates silence. Makes plans with anyone who will listen. Cries at films without "
    "shame.",
    "Calm and exact. Thinks for a long time before speaking. Dislikes big words and bigger promises. Keeps every "
    "appointment. Would rather hear a hard truth than a kind lie. Slow to trust, and loyal for good.",
    "Restless and curious. Asks three questions before the first is answered. Bored by routine. Takes risks for fun "
    "and laughs when they fail. Starts more than gets finished. Generous with time and careless with money.",
    "Gentle and shy. Speaks in a low voice. Worries about having said the wrong thing. Notices when others are tired. "
    "Avoids quarrels at any cost. Finds courage when somebody weaker is treated badly.",
    "Proud and plain-spoken. Says what everybody else only thinks. Respects hard work and little else. Finds praise "
    "embarrassing. Holds on to an opinion until it is proved wrong, then drops it without a word.",
    "Dreamy and forgetful. Lives half in stories. Sees pictures in clouds and meaning in small accidents. Late for "
    "most things. Kind without noticing it. Never angry for longer than an hour.",
    "Competitive and full of drive. Counts the score in everything. Gets up early and expects it of others. Impatient "
    "with excuses. Admires winners, and learns from each defeat. Shows affection by giving advice.",
    "Dry and ironic. Hides feelings behind jokes. Reads people at a glance. Sceptical of fashions and of experts. "
    "Loves an argument for its own sake. Turns tender when nobody is watching.",
    "Orderly and cautious. Makes lists, and lists of lists. Reads instructions to the end. Uneasy with surprises. "
    "Polite to a fault. Finds peace in small tasks done well.",
    "Cheerful and stubborn. Looks for the good side and insists on it. Whistles in the rain. Takes no for a "
    "beginning. Encourages everyone in sight. Bad at listening to complaints.",
    "Melancholy and deep. Remembers old hurts in detail. Prefers one close friend to ten. Drawn to slow music and "
    "long letters. Suspicious of easy comfort. Loves with great seriousness.",
    "Practical and brisk. Has no patience for theory. Fixes first and asks later. Short in speech, quick in help. "
    "Laughs loudly at silly jokes. Trusts hands more than words.",
    "Charming and vain. Enjoys an audience. Tells each story better than it happened. Remembers names and birthdays. "
    "Hurt by the smallest slight. Flatters others, and half believes it.",
    "Patient and wise in a homely way. Answers with a proverb or a shrug. Leaves others their mistakes. Rarely "
    "hurried, never loud. Curious about children and old people. Content with little.",
    "Nervous and bright. Talks fast and apologises often. Prepares for the worst and is amazed when it stays away. "
    "Sharp memory for details. Grateful for clear answers. Bites back when cornered.",
    "Rebellious and idealistic. Questions every rule. Burns for causes, and burns out too. Scornful of small talk. "
    "Shares the last crust. Finds it hard to admit doubt.",
    "Formal and reserved. Values good manners above wit. Keeps private matters private. Careful with facts. Takes "
    "pride in keeping calm. Softens slowly, over years.",
    "Playful and impulsive. Decides on a whim and enjoys the result. Invents nicknames. Loves riddles and pranks. "
    "Gets sulky when ignored. Comes back with a peace offering.",
    "Thoughtful and fair. Weighs both sides, sometimes for too long. Asks what others feel before giving a view. "
    "Dislikes gossip. Steady under pressure. Admits mistakes at once.",
    "Ambitious and secretive. Plans years ahead. Gives away little and notices much. Cool in a crisis. Measures "
    "friends by what they do. Hungry for knowledge of any kind.",
    "Easy-going and lazy in a friendly way. Puts things off until they vanish. Never envious. Takes teasing well. "
    "Likes long meals and longer talks. Comes alive after dark.",
    "Tough on the outside and sentimental within. Grumbles about everything. Keeps old tickets and letters. "
    "Protective of the family. Uses few words for thanks, and means each of them.",
)
