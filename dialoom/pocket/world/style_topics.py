"""What the style texts are about: forty writing tasks with six points each.

A point is `core|tail`. Short sentences use the core alone, longer ones add the tail or join two points. Cores carry the
words that style rules change (`it is`, `do not`, `good`, `people`, ...), so that every feature shows in every text.
"""

TABLE = """
meeting: an e-mail asking a colleague to move the meeting to Friday
 the meeting on Monday is not good|for our team this week
 it is better on Friday morning|when the room is free
 we will need a small room|on the second floor
 many people cannot come on Monday|because of the training
 I will send a quick plan|with the new hour
 I am happy to call you|about the meeting today
library: a short note about the new library
 the new library is very nice|and has a garden
 it is full of good books|from floor to roof
 many people will read there|in the quiet hall
 the children do not pay|for a library card
 we will start with a story|on the opening day
 it is a big building|next to the old mill
picnic: an invitation to a picnic by the lake
 we will have a picnic|by the lake on Sunday
 I will buy good bread|and cheese for the basket
 many people will be there|with a blanket each
 it is a nice lake|with clean water
 the children do not need boats|but they may swim
 we will start at noon|under the big tree
lost_cat: a notice about a lost cat
 I am looking for my cat|since last night
 it is a small grey cat|with a white paw
 the cat is not afraid|of people or dogs
 many children know its name|in our street
 it is a quick animal|and hides under cars
 I will be very happy|if the cat comes home
bike: a note to sell an old bike
 I will sell my old bike|this week for little money
 it is a good bike|with a new chain
 the bike is very quick|on a flat road
 the wheels are not big|but they are strong
 you do not need many things|only a pump and oil
 you will be happy to buy it|before the summer
thanks: a thank-you note for a gift
 it is a very nice gift|and a real surprise
 I am happy with the scarf|in this cold winter
 the wool is not heavy|but soft and warm
 many people like the colour|of the blue scarf
 I will wear the gift|on every big walk
 you are a good person|to think of me
job: a letter asking for a summer job
 I am looking for a job|in your shop this summer
 I will start in June|after the last exam
 it is a good shop|with friendly staff
 I do not need big wages|to do honest work
 I am quick with numbers|and with the till
 many people know my work|from the market
neighbour: a note to a neighbour about loud music
 the music is not nice|late in the night
 it is a small house|with thin walls
 the children cannot sleep|before a school day
 I am happy about music|in the afternoon
 many people hear the drum|down the whole stairs
 we will find a good hour|for the loud songs
recipe: a note with a simple soup recipe
 it is a quick soup|for a cold evening
 you will need many carrots|and one white onion
 do not buy big carrots|because they taste of wood
 we will start with the onion|in a little butter
 it is good with salt|and fresh pepper
 the children like this soup|with a slice of bread
garden: a note about work in the garden
 the garden is very nice|after the spring rain
 we will start with the roses|along the stone fence
 it is a big job|to cut the hedge
 I do not have good tools|for the hard ground
 many small things need water|in the dry corner
 I am happy with the beans|that grow by the wall
trip: an e-mail planning a trip to the coast
 we will go to the coast|by train in May
 it is a nice old town|with a white harbour
 do not pack many things|only a coat and boots
 the hotel is not big|but it faces the sea
 I will buy the tickets|at the station
 people say the fish is good|in the harbour inn
birthday: a birthday wish to a friend
 it is a very good day|because you were born
 I am happy for you|on your birthday
 I will bring a big cake|with thirty candles
 we will not buy small balloons|but a whole bunch
 many people send a wish|for your new year
 the children made nice cards|with gold paper
printer: a report that the printer is broken
 the printer is not good today|and eats the paper
 it is very slow|since the last repair
 many people cannot print|their forms this week
 I will call a quick mechanic|from the service firm
 we will buy new ink|for the big machine
 it is a small part|that makes the noise
course: a note about an evening course in drawing
 the drawing course will start|on Tuesday evening
 it is a nice class|with a kind teacher
 you do not need many things|only a pencil and paper
 many people draw small flowers|in the first lesson
 I am happy with my picture|of the old bridge
 we will show good work|on the school wall
dentist: a message to change a dentist visit
 I cannot come to the dentist|on Wednesday at nine
 it is not a big problem|with my back tooth
 I will need a quick visit|some day next week
 I am happy with any hour|in the late afternoon
 many people wait for the dentist|in the morning
 you are very good|with nervous patients
market: a note about the street market
 the street market is nice|on a sunny Saturday
 many people sell apples there|and home-made jam
 I will buy good honey|at the corner stand
 it is not a big place|but full of colour
 the children like the stalls|with wooden toys
 we will start very early|to find the best eggs
film: a short opinion about a new film
 it is a good film|about a lonely sailor
 the story is not quick|in the first hour
 many people cried at the end|of the storm scene
 the music is very nice|and fits the film
 I will see it again|on a big screen
 the children were happy|with the funny parrot
moving: a message asking friends to help with moving house
 we will start to move house|on Saturday at eight
 I am happy about every hand|on the steep stairs
 it is not a big van|so we drive twice
 many small boxes are ready|in the front room
 I will buy pizza|for all the people
 do not lift heavy things|without a good belt
park: a complaint about rubbish in the park
 the park is not nice now|with all that rubbish
 many people leave small bottles|on the grass
 it is bad for the birds|and for the pond
 the children cannot play there|without good shoes
 we will need a big bin|at every gate
 I am happy to collect rubbish|with a few others
choir: an invitation to sing in a choir
 we will start a small choir|in the church hall
 it is very nice to sing|after a long day
 you do not need a big voice|or any music lessons
 many people sing with us|every Thursday night
 I am happy with our songs|from the old days
 we will give a good concert|before the winter
train: a message about a late train
 my train is not quick today|because of the snow
 I will be very late|for our dinner
 many people stand at the platform|in the cold wind
 it is a big delay|of almost an hour
 do not buy food for me|but start without me
 I am happy with good tea|when I arrive
teacher: a letter thanking a teacher
 you are a very good teacher|and always patient
 the children like your lessons|about the stars
 it is nice to hear|how much they learn
 many people talk about you|at the school gate
 I am happy with the marks|of my small son
 we will not forget you|after the last term
computer: a note about buying a new computer
 I will buy a new computer|with my spring pay
 the old one is not quick|and very loud
 it is good for letters|and for simple games
 I do not need a big screen|on my narrow desk
 many people like this keyboard|because it is flat
 it will start in seconds|without any sound
rain: a note about a day of heavy rain
 it is a day of big rain|and grey clouds
 many people do not go out|without an umbrella
 the small river is high|near the bridge
 the children are happy|with every puddle
 I will start a good fire|in the kitchen stove
 it is nice to read|while the rain falls
hiking: an invitation to a hike in the hills
 we will start the hike|at the wooden gate
 it is a good path|up the green hill
 do not carry big things|in your bag
 many people rest at the top|by the stone tower
 I am happy with small steps|on the steep part
 the view is very nice|over the whole valley
coffee: a note about the office coffee machine
 the coffee machine is not good|since last Monday
 it is very slow|and the coffee is cold
 many people will buy coffee|at the bakery now
 we will need a small fund|for a new machine
 I am happy to clean it|once a week
 it is nice to start|with a hot cup
dog: a message asking someone to walk the dog
 I cannot walk the dog|on Thursday at noon
 it is a nice brown dog|with long ears
 the dog is very quick|when it sees a ball
 do not let big dogs near|because he barks
 I will be happy|about half an hour
 many people know him|on the river path
museum: a short review of a museum
 it is a good museum|for a wet day
 many people like the old ships|in the first hall
 the children do not pay|on the first Sunday
 I will start with the coins|next time I visit
 it is a very big museum|with six floors
 the guide is nice|and knows every painting
phone: a note about a lost phone
 I cannot find my phone|since the bus ride
 it is a small black phone|in a red case
 many good pictures are on it|of our holiday
 I will be very happy|about a call
 it is not a new phone|and has a scratch
 people on the bus were nice|and searched with me
football: an invitation to a football game
 we will start the football game|at three o'clock
 it is a good field|behind the school
 you do not need big talent|just old shoes
 many people shout for us|from the benches
 the children are very quick|on the left side
 I am happy with one goal|in the last minute
bakery: a note praising a small bakery
 it is a small bakery|in the side street
 the bread is very good|and still warm
 many people wait there|before the sun is up
 I will buy nut cake|for my aunt
 they do not use many things|just flour and milk
 the baker is nice|and sings at the oven
winter: a note about getting ready for winter
 it is nice to start early|before the first frost
 I will buy dry wood|for the long winter
 many small windows are not tight|on the north side
 we will need big gloves|and thick socks
 the children are happy|when the snow comes
 a good lamp is ready|for the dark evenings
flat: a message asking about a flat to rent
 I am looking for a flat|near the south station
 it is not a big budget|but I pay on time
 I will need two small rooms|and a balcony
 many people say it is good|to live on your road
 I do not have pets|or loud hobbies
 I am happy to start|the rent in March
book: a short opinion about a book
 it is a very good book|about two brothers
 the first chapter is not quick|but the rest flies
 many people love the ending|at the lighthouse
 I will buy the next book|by this writer
 it is nice to read|on a long journey
 the small jokes are good|in every chapter
party: an e-mail about an office party
 we will have a party|in the office on Friday
 it is a good reason|to meet the new boss
 many people will bring salad|and lemon cake
 do not buy big gifts|a song is enough
 I am happy to start|the music at six
 the small lights are nice|along the corridor
doctor: a message to say you are ill
 I am not well today|and must see a doctor
 it is a big cold|with a sore throat
 I will need a few days|of rest and tea
 many people are ill|at this time of year
 the doctor is very good|and quick to help
 I will be happy to start again|with work next week
holiday: a postcard from a holiday
 it is very nice here|on the warm island
 I do not miss work|or the grey sky
 many people rest on the beach|until sunset
 the small boats are quick|between the islands
 I am happy with fried fish|and cold lemonade
 we will buy good olives|for the flight home
concert: a note about a concert ticket to give away
 I cannot go to the concert|on Saturday evening
 it is a good ticket|in the third row
 many people like this band|and its violin player
 the hall is not big|but the sound is clear
 the concert will start at eight|after a quick speech
 I am happy to give it|to a nice neighbour
exam: a note to wish someone luck in an exam
 you will be very good|in the exam tomorrow
 it is not a big test|just forty questions
 do not start to worry|about the hard chemistry part
 many people passed this exam|with less study
 I am happy to wait|outside with chocolate
 a nice breakfast is good|before the exam
bees: a note about keeping bees
 it is nice to keep bees|on a flat roof
 many people buy my honey|in round jars
 the bees are not angry|on a calm day
 a small hive is good|for the start
 I am happy with the bees|among the clover
 the children are very quick|to learn their dance
"""
