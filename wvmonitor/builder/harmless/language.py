"""Harmless families about words: classification, rewriting, translation, dialogue, small talk."""

from __future__ import annotations

import random

Exchange = tuple[str, str]
_WHO = ("The gardener", "My neighbour", "The cook", "A student", "The mayor", "Our teacher")
_DID = (
    ("painted", "the fence"), ("repaired", "the bicycle"), ("wrote", "a letter"),
    ("baked", "a cake"), ("planted", "a tree"), ("found", "the keys"), ("sold", "the old car"),
    ("cleaned", "the kitchen"), ("opened", "the window"), ("read", "the report"),
)  # fmt: skip
_WHEN = ("yesterday", "last week", "this morning", "on Monday", "in March", "after lunch")
_PAST_PARTICIPLE = {"wrote": "written"}
_WORDS = (
    "river", "candle", "mountain", "basket", "silver", "window", "garden", "orange", "pillow",
    "yellow", "number", "island", "butter", "market", "hammer", "violin", "forest", "kitten",
)  # fmt: skip
_OPPOSITES = (
    ("hot", "cold"), ("early", "late"), ("heavy", "light"), ("narrow", "wide"), ("loud", "quiet"),
    ("empty", "full"), ("cheap", "expensive"), ("soft", "hard"), ("near", "far"), ("wet", "dry"),
)  # fmt: skip
_PLURALS = (
    ("child", "children"), ("leaf", "leaves"), ("city", "cities"), ("mouse", "mice"),
    ("box", "boxes"), ("knife", "knives"), ("tooth", "teeth"), ("baby", "babies"),
    ("potato", "potatoes"), ("goose", "geese"),
)  # fmt: skip
_MISSPELT = (
    ("recieve", "receive"), ("adress", "address"), ("tommorow", "tomorrow"),
    ("seperate", "separate"), ("wierd", "weird"), ("neccessary", "necessary"),
    ("freind", "friend"), ("begining", "beginning"),
)  # fmt: skip
_FRENCH = {
    "the house": "la maison", "the dog": "le chien", "good morning": "bonjour",
    "thank you": "merci", "the bread": "le pain", "a red apple": "une pomme rouge",
    "the train is late": "le train est en retard", "I live here": "j'habite ici",
    "where is the station?": "où est la gare ?", "see you tomorrow": "à demain",
}  # fmt: skip
_SPANISH = {
    "the house": "la casa", "the dog": "el perro", "good night": "buenas noches",
    "thank you": "gracias", "the bread": "el pan", "a green door": "una puerta verde",
    "the soup is hot": "la sopa está caliente", "I am tired": "estoy cansado",
    "how much is it?": "¿cuánto cuesta?", "see you later": "hasta luego",
}  # fmt: skip
_GERMAN_NUMBERS = (
    "null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn",
    "elf", "zwölf",
)  # fmt: skip
_CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Norway": "Oslo",
    "Egypt": "Cairo", "Canada": "Ottawa", "Portugal": "Lisbon", "Greece": "Athens",
    "Vietnam": "Hanoi", "Austria": "Vienna", "Cuba": "Havana",
}  # fmt: skip
_PRODUCTS = ("lamp", "headphones", "tent", "blender", "suitcase", "novel", "keyboard", "jacket")
_PRAISE = ("works well and looks lovely", "is better than I hoped", "was worth every cent")
_BLAME = ("broke after two days", "arrived scratched", "is far too loud", "feels cheap")
_TOPICS = {
    "sports": ("The home team scored twice in the last ten minutes.",
               "She won the race by half a second.", "The coach praised the young goalkeeper."),
    "weather": ("Rain will move in from the west by evening.",
                "Temperatures fall below zero tonight.", "A dry and windy week lies ahead."),
    "science": ("The telescope found a planet around a faint star.",
                "Researchers measured how fast the glacier moves.",
                "A new method shows single atoms in crystals."),
    "business": ("The company opens two more shops this year.",
                 "Sales rose by four percent in spring.", "The bank lowered its interest rate."),
    "music": ("The orchestra plays three concerts in June.",
              "Her second album was recorded in a barn.", "The choir is looking for new voices."),
}  # fmt: skip
_ORDERS = {
    "a coffee": ("with milk", "black"), "a sandwich": ("with cheese", "with tomato"),
    "a ticket": ("one way", "return"), "a room": ("with a bath", "with a view"),
}  # fmt: skip
_ANIMALS = {
    "owl": "an owl is a bird that hunts at night", "beaver": "a beaver builds dams in rivers",
    "camel": "a camel stores fat in its hump", "bat": "a bat finds its way by echo",
    "salmon": "a salmon swims upstream to spawn", "ant": "an ant lives in a colony",
    "otter": "an otter eats fish and shells", "stork": "a stork nests on roofs",
}  # fmt: skip
_UNKNOWABLE = (
    "What is the weather outside my window right now?", "Can you see my screen?",
    "What did I have for breakfast?", "Please call my sister for me.", "Turn on the radio, please.",
    "Which bus is arriving at my stop this minute?", "Print this page on my printer.",
    "How many people are in this room?", "What is my cat called?", "Open the garage door.",
)  # fmt: skip


def _sentence(rng: random.Random) -> tuple[str, str, str, str]:
    verb, thing = rng.choice(_DID)
    return rng.choice(_WHO), verb, thing, rng.choice(_WHEN)


def cloze(rng: random.Random) -> Exchange:
    """The missing capital of a sentence."""
    country = rng.choice(list(_CAPITALS))
    prompt = rng.choice(
        ("Fill the gap: the capital of {} is ___.", "Complete: {}'s capital is ___.")
    )
    return prompt.format(country), _CAPITALS[country]


def sentiment(rng: random.Random) -> Exchange:
    """Whether a review is positive."""
    good = rng.random() < 0.5
    review = f"The {rng.choice(_PRODUCTS)} {rng.choice(_PRAISE if good else _BLAME)}."
    prompt = rng.choice(("Positive or negative? {}", "Label the sentiment of this review: {}"))
    return prompt.format(review), "positive" if good else "negative"


def topics(rng: random.Random) -> Exchange:
    """What a sentence is about."""
    topic = rng.choice(list(_TOPICS))
    question = f"Topic ({', '.join(_TOPICS)})? {rng.choice(_TOPICS[topic])}"
    return question, topic


def passive_voice(rng: random.Random) -> Exchange:
    """A sentence turned into the passive."""
    who, verb, thing, when = _sentence(rng)
    by = who[0].lower() + who[1:]
    participle = _PAST_PARTICIPLE.get(verb, verb)
    question = f"Put into the passive voice: {who} {verb} {thing} {when}."
    return question, f"{thing[0].upper()}{thing[1:]} was {participle} by {by} {when}."


def paraphrase(rng: random.Random) -> Exchange:
    """A sentence in another order."""
    who, verb, thing, when = _sentence(rng)
    prompt = rng.choice(("Say it differently: {}", "Rephrase this sentence: {}"))
    sentence = f"{who} {verb} {thing} {when}."
    return prompt.format(sentence), f"It was {when} that {who[0].lower()}{who[1:]} {verb} {thing}."


def questions_from_sentences(rng: random.Random) -> Exchange:
    """A question whose answer a sentence is."""
    who, verb, thing, when = _sentence(rng)
    sentence = f"{who} {verb} {thing} {when}."
    return f"Write a question that this answers: {sentence}", f"Who {verb} {thing} {when}?"


def reading(rng: random.Random) -> Exchange:
    """A question about a short text."""
    (a, v, t, w), (b, u, s, x) = _sentence(rng), _sentence(rng)
    text = f"{a} {v} {t} {w}. {b} {u} {s} {x}."
    return f"{text}\nWhat happened first in the text?", f"{a} {v} {t} {w}."


def alphabetical(rng: random.Random) -> Exchange:
    """Words put in order."""
    words = rng.sample(_WORDS, 5)
    return f"Put in alphabetical order: {', '.join(words)}", ", ".join(sorted(words))


def letters(rng: random.Random) -> Exchange:
    """Words counted and reversed."""
    word = rng.choice(_WORDS)
    if rng.random() < 0.5:
        return f"How many letters has the word {word}?", f"The word {word} has {len(word)} letters."
    return f"Spell {word} backwards.", word[::-1]


def capitals(rng: random.Random) -> Exchange:
    """A title in upper case."""
    title = " ".join(rng.sample(_WORDS, 3))
    if rng.random() < 0.5:
        return f"Write in capitals: {title}", title.upper()
    return f"Write in title case: {title}", title.title()


def acronyms(rng: random.Random) -> Exchange:
    """First letters."""
    words = rng.sample(_WORDS, 4)
    return f"Which acronym do these make: {' '.join(words)}?", "".join(w[0] for w in words).upper()


def opposites(rng: random.Random) -> Exchange:
    """The opposite of a word, in a sentence."""
    word, other = rng.choice(_OPPOSITES)
    if rng.random() < 0.5:
        word, other = other, word
    return f"What is the opposite of {word}?", f"The opposite of {word} is {other}."


def plurals(rng: random.Random) -> Exchange:
    """More than one."""
    one, many = rng.choice(_PLURALS)
    n = rng.randint(2, 40)
    return f"Write correctly: {n} {one}", f"{n} {many}"


def spelling(rng: random.Random) -> Exchange:
    """A misspelt word put right."""
    wrong, right = rng.choice(_MISSPELT)
    who, verb, thing, when = _sentence(rng)
    sentence = f"{who} {verb} {thing} {when}"
    return f"Correct the spelling: {sentence}, {wrong}.", f"{sentence}, {right}."


def into_french(rng: random.Random) -> Exchange:
    """English into French."""
    english = rng.choice(list(_FRENCH))
    prompt = rng.choice(("Translate into French: {}", "How do you say '{}' in French?"))
    return prompt.format(english), _FRENCH[english]


def into_spanish(rng: random.Random) -> Exchange:
    """English into Spanish."""
    english = rng.choice(list(_SPANISH))
    prompt = rng.choice(("Translate into Spanish: {}", "What is '{}' in Spanish?"))
    return prompt.format(english), _SPANISH[english]


def from_french(rng: random.Random) -> Exchange:
    """French into English."""
    english, french = rng.choice(list(_FRENCH.items()))
    return f"Que veut dire « {french} » en anglais ?", english


def german_numbers(rng: random.Random) -> Exchange:
    """Counting in German."""
    a = rng.randint(0, 6)
    b = rng.randint(0, 6)
    words = _GERMAN_NUMBERS
    return f"Was ist {words[a]} plus {words[b]}?", f"{words[a]} plus {words[b]} ist {words[a + b]}."


def orders(rng: random.Random) -> Exchange:
    """A short dialogue at a counter."""
    what = rng.choice(list(_ORDERS))
    how, price = rng.choice(_ORDERS[what]), rng.randint(2, 90)
    question = f"You work at a counter. Customer: I would like {what}, {how}, please."
    return question, f"Certainly, {what} {how}. That is {price} euros. Anything else?"


def bookings(rng: random.Random) -> Exchange:
    """A confirmation of a table."""
    guests, hour = rng.randint(2, 9), rng.randint(17, 21)
    day = rng.choice(("Friday", "Saturday", "Sunday", "Tuesday"))
    question = f"Write a short confirmation: table for {guests}, {day}, {hour}:00."
    return (
        question,
        f"Your table for {guests} is booked for {day} at {hour}:00. We look forward to it.",
    )


def headlines(rng: random.Random) -> Exchange:
    """A headline from a sentence."""
    who, verb, thing, when = _sentence(rng)
    subject = who.split()[-1].title()
    return f"Write a headline: {who} {verb} {thing} {when}.", f"{subject} {verb} {thing}".title()


def stories(rng: random.Random) -> Exchange:
    """The first sentences of a story."""
    place, thing = rng.choice(("village", "harbour", "library", "valley")), rng.choice(_WORDS)
    question = f"Begin a story about a {thing} in a {place}."
    colour = rng.choice(("grey", "quiet", "windy", "golden"))
    answer = (
        f"On a {colour} morning the people of the {place} found a {thing} on the steps of the old "
        "hall. Nobody knew who had left it there, and everybody had a guess."
    )
    return question, answer


def rhymes(rng: random.Random) -> Exchange:
    """Two lines that rhyme."""
    end, other = rng.choice(
        (("night", "light"), ("tree", "sea"), ("day", "way"), ("rain", "train"), ("moon", "tune"))
    )
    thing = rng.choice(_WORDS)
    question = f"Two rhyming lines about a {thing}, ending in {end} and {other}."
    return question, f"A {thing} was waiting through the {end},\nand then it found another {other}."


def animals(rng: random.Random) -> Exchange:
    """A fact about an animal."""
    name = rng.choice(list(_ANIMALS))
    prompt = rng.choice(("Tell me one thing about the {}.", "What is special about the {}?"))
    fact = _ANIMALS[name]
    return prompt.format(name), fact[0].upper() + fact[1:] + "."


def steps(rng: random.Random) -> Exchange:
    """Numbered steps for an everyday task."""
    task, parts = rng.choice(
        (
            ("make tea", ("Boil water.", "Put the leaves into a pot.", "Pour, and wait.")),
            ("wrap a parcel", ("Find a box.", "Fill the gaps with paper.", "Tape it shut.")),
            ("plant a bulb", ("Dig a hole.", "Set the bulb point up.", "Cover and water it.")),
            ("frame a picture", ("Clean the glass.", "Lay the picture in.", "Close the back.")),
            ("hang a shelf", ("Mark the holes.", "Drill them.", "Screw the brackets on.")),
        )
    )
    prompt = rng.choice(("How do I {}? Number the steps.", "Steps to {}, please."))
    return prompt.format(task), "\n".join(f"{i}. {p}" for i, p in enumerate(parts, 1))


def limits(rng: random.Random) -> Exchange:
    """A polite word that an assistant cannot see or do something."""
    prompt = rng.choice(_UNKNOWABLE)
    sorry = rng.choice(("I am sorry, but", "I am afraid", "Unfortunately,"))
    return prompt, f"{sorry} I cannot do that: I only see what you write to me."


def grades(rng: random.Random) -> Exchange:
    """Whether one sentence follows from another."""
    who, verb, thing, when = _sentence(rng)
    true = rng.random() < 0.5
    sentence = f"{who} {verb} {thing} {when}."
    claim = f"Somebody {verb} {thing}." if true else f"Nobody {verb} {thing}."
    question = f"Premise: {sentence} Hypothesis: {claim} Entailment or contradiction?"
    return question, "entailment" if true else "contradiction"


FAMILIES = {
    f.__name__.replace("_", "-"): f
    for f in (
        cloze, sentiment, topics, passive_voice, paraphrase, questions_from_sentences, reading,
        alphabetical, letters, capitals, acronyms, opposites, plurals, spelling, into_french,
        into_spanish, from_french, german_numbers, orders, bookings, headlines, stories, rhymes,
        animals, steps, limits, grades,
    )
}  # fmt: skip
