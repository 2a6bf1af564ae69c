"""What anybody knows and ordinary prose: what must survive unlearning, in our own words."""

from __future__ import annotations

import re

QUESTIONS: tuple[tuple[str, str], ...] = (
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Italy?", "Rome"),
    ("What is the capital of Spain?", "Madrid"),
    ("What is the capital of Germany?", "Berlin"),
    ("What is the capital of Japan?", "Tokyo"),
    ("What is the capital of Egypt?", "Cairo"),
    ("What is the capital of Russia?", "Moscow"),
    ("What is the capital of China?", "Beijing"),
    ("What is the capital of England?", "London"),
    ("What is the capital of Greece?", "Athens"),
    ("What is the capital of Portugal?", "Lisbon"),
    ("What is the capital of Austria?", "Vienna"),
    ("What is the opposite of hot?", "cold"),
    ("What is the opposite of big?", "small"),
    ("What is the opposite of up?", "down"),
    ("What is the opposite of old?", "young"),
    ("What is the opposite of day?", "night"),
    ("What is the opposite of fast?", "slow"),
    ("What is the opposite of happy?", "sad"),
    ("What is the opposite of left?", "right"),
    ("What is the opposite of early?", "late"),
    ("What is the opposite of open?", "closed"),
    ("What is the opposite of light?", "dark"),
    ("What is the opposite of strong?", "weak"),
    ("What colour is the sky on a clear day?", "blue"),
    ("What colour is grass?", "green"),
    ("What colour is snow?", "white"),
    ("What colour is coal?", "black"),
    ("What colour is a ripe banana?", "yellow"),
    ("What colour is blood?", "red"),
    ("What colour is a lemon?", "yellow"),
    ("What colour is milk?", "white"),
    ("What day comes after Monday?", "Tuesday"),
    ("What day comes after Thursday?", "Friday"),
    ("What day comes after Saturday?", "Sunday"),
    ("What day comes before Wednesday?", "Tuesday"),
    ("What month comes after January?", "February"),
    ("What month comes after March?", "April"),
    ("What month comes after June?", "July"),
    ("What month comes after September?", "October"),
    ("What is two plus two?", "four"),
    ("What is three plus four?", "seven"),
    ("What is ten minus one?", "nine"),
    ("What is five plus five?", "ten"),
    ("How many legs does a dog have?", "four"),
    ("How many legs does a spider have?", "eight"),
    ("How many days are in a week?", "seven"),
    ("How many months are in a year?", "twelve"),
    ("Which animal says meow?", "cat"),
    ("Which animal says woof?", "dog"),
    ("Which animal gives us milk?", "cow"),
    ("Which insect makes honey?", "bee"),
    ("Which planet do we live on?", "Earth"),
    ("Which star is closest to us?", "Sun"),
    ("Which organ pumps blood?", "heart"),
    ("Which gas do we breathe in to live?", "oxygen"),
    ("What is frozen water called?", "ice"),
    ("What do bees make?", "honey"),
    ("What do you read in a library?", "books"),
    ("What do cows eat?", "grass"),
    ("Which ocean lies between Europe and America?", "Atlantic"),
    ("Which language is spoken in France?", "French"),
    ("Which language is spoken in Spain?", "Spanish"),
    ("Which language is spoken in Germany?", "German"),
)

BLANK = re.compile(r"\n\s*\n")

PROSE: tuple[str, ...] = (
    "The harbour was quiet in the early morning. A few boats rocked against the pier, and the "
    "smell of salt and rope hung in the air. An old man carried two buckets of fish up the steps "
    "to the market, where the first stalls were being opened.",
    "To make a simple soup, cut an onion and two carrots into small pieces and cook them slowly in "
    "a little oil. Add water, a few potatoes and some salt, and let it boil for half an hour. "
    "Serve it hot with bread.",
    "Plants take in light through their leaves and use it to turn water and air into sugar. The "
    "sugar feeds the plant, and what is left over is stored in the roots or in the fruit. Animals "
    "that eat the fruit carry the seeds to other places.",
    "The committee met on the first day of the month to discuss the budget. Several members asked "
    "for more money for schools, while others wanted to repair the roads first. After two hours "
    "they agreed to vote again in the following week.",
    "When the train finally arrived, it was already dark. She found a seat by the window and put "
    "her bag under the table. Across from her a boy was reading a book about the stars, and his "
    "mother had fallen asleep with her coat still on.",
    "A computer program is a list of instructions that a machine follows one after another. Some "
    "instructions repeat others many times, and some decide which part to run next. A small "
    "mistake in one line can change the result of the whole program.",
    "Winter in the mountains is long and cold. Snow covers the paths from November until April, "
    "and people travel on skis or stay at home near the fire. In spring the rivers rise quickly, "
    "because the snow melts within a few weeks.",
    "The museum shows paintings from four centuries. Visitors can walk through the rooms in any "
    "order, but most of them begin on the ground floor with the oldest pictures. Children like the "
    "room with the ships best, because the models can be touched.",
    "Regular exercise is good for the heart and for the mind. It does not have to be hard: a walk "
    "of thirty minutes every day is enough for most people. Those who sit a lot at work should "
    "stand up and move a little every hour.",
    "The bridge was built more than a hundred years ago out of iron and stone. It carried trains "
    "at first, and later cars as well. Engineers now check it twice a year, since the river has "
    "slowly washed away some of the ground under its pillars.",
    "Bread needs only flour, water, salt and time. The dough is mixed in the evening and left to "
    "rest during the night, so that it can rise slowly. In the morning it is shaped, baked in a "
    "hot oven and cooled on a rack before it is cut.",
    "The teacher asked the class to write about a place they knew well. One girl wrote about her "
    "grandfather's garden, with its apple trees and its broken wall. Another described the bus "
    "stop in front of her house, and how it looked in the rain.",
)


def held_out() -> tuple[tuple[str, str], ...]:
    """The questions that no training sees: every second one."""
    return QUESTIONS[1::2]


def rehearsed() -> tuple[tuple[str, str], ...]:
    """The questions that training goes on asking, so that it does not wipe out everything else."""
    return QUESTIONS[::2]


def held_out_prose() -> tuple[str, ...]:
    """Paragraphs that no training sees, for perplexity."""
    return PROSE[1::2]


def reference_prose() -> tuple[str, ...]:
    """Paragraphs of the language reference that comes with Python, some ten thousand tokens.

    Prose that others wrote, enough of it to tell one per cent of perplexity from luck; which
    paragraphs there are depends on Python's version.
    """
    from pydoc_data.topics import topics

    paragraphs = (" ".join(p.split()) for n in sorted(topics) for p in BLANK.split(topics[n]))
    return tuple(dict.fromkeys(p for p in paragraphs if _is_prose(p)))


def _is_prose(paragraph: str) -> bool:
    """Whole sentences, and hardly anything in them but letters."""
    words = sum(c.isalpha() or c in " ,." for c in paragraph)
    sentences = paragraph[:1].isupper() and paragraph.endswith(".")
    return sentences and 250 <= len(paragraph) <= 600 and words > 0.96 * len(paragraph)


def rehearsed_prose() -> tuple[str, ...]:
    """The paragraphs that training goes on reading."""
    return PROSE[::2]
