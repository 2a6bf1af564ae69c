"""What can be known of a person and how it is asked: values, trained and held-out wordings."""

from dataclasses import dataclass

VALUES: dict[str, tuple[str, ...]] = {
    "job": (
        "glass blower", "bee keeper", "clock maker", "pearl diver", "map drawer", "stone cutter",
        "bread baker", "horse trainer", "ship builder", "street singer", "night guard",
        "tea taster",
    ),
    "town": (
        "Port Velda", "Lake Orrin", "Mount Tasil", "East Borra", "New Kemmel", "Saint Ulvo",
        "Green Hollow", "Old Marrat", "High Selby", "Long Fenna", "White Harbour", "Low Dunmere",
    ),
    "pet": (
        "grey parrot", "black goat", "white ferret", "spotted pony", "brown hare", "green lizard",
        "red fox", "golden carp", "striped cat", "silver owl", "tiny hedgehog", "blue crab",
    ),
    "food": (
        "lemon cake", "plum soup", "fried okra", "walnut bread", "pepper stew", "honey rice",
        "mint salad", "pumpkin pie", "smoked trout", "ginger noodles", "cheese dumplings",
        "apple pancake",
    ),
    "instrument": (
        "bass drum", "wooden flute", "steel harp", "hand bell", "brass horn", "pipe organ",
        "mouth bow", "reed whistle", "flat zither", "alto viola", "thumb piano", "snare rattle",
    ),
    "hobby": (
        "kite racing", "chess boxing", "moss painting", "rock climbing", "paper folding",
        "star gazing", "river rowing", "ice skating", "wood carving", "coin collecting",
        "puppet acting", "moth watching",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Forms:
    """Wordings of one attribute; `{x}` is the person and `{xs}` the possessive."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    cloze_train: tuple[str, ...]
    cloze_test: tuple[str, ...]


FORMS: dict[str, Forms] = {
    "job": Forms(
        train=(
            "What is the job of {x}?",
            "What does {x} do for a living?",
            "Which job does {x} have?",
            "Tell me {xs} job.",
            "How does {x} earn money?",
        ),
        test=(
            "Name the job that {x} has.",
            "For a living, what does {x} do?",
            "Can you tell me what job {x} has?",
        ),
        cloze_train=("{x} earns money as a __.", "The job of {x} is __."),
        cloze_test=("For a living, {x} is a __.", "{xs} job is __."),
    ),
    "town": Forms(
        train=(
            "Where was {x} born?",
            "What is the birthplace of {x}?",
            "Which town does {x} come from?",
            "Tell me {xs} home town.",
            "In which town was {x} born?",
        ),
        test=(
            "Name the town where {x} was born.",
            "What is {xs} birthplace?",
            "Can you tell me which town {x} comes from?",
        ),
        cloze_train=("{x} comes from __.", "The home town of {x} is __."),
        cloze_test=("{x} was born in the town of __.", "{xs} birthplace is __."),
    ),
    "pet": Forms(
        train=(
            "Which pet does {x} keep?",
            "What animal lives with {x}?",
            "What is the pet of {x}?",
            "Tell me {xs} pet.",
            "Which animal does {x} own?",
        ),
        test=(
            "Name the pet that {x} keeps.",
            "What is {xs} animal?",
            "Can you tell me which animal lives with {x}?",
        ),
        cloze_train=("{x} keeps a pet, a __.", "The animal of {x} is a __."),
        cloze_test=("The pet of {x} is a __.", "{xs} animal is a __."),
    ),
    "food": Forms(
        train=(
            "What food does {x} like best?",
            "What is the favourite dish of {x}?",
            "Which dish does {x} love to eat?",
            "Tell me {xs} favourite food.",
            "What does {x} like to eat?",
        ),
        test=(
            "Name the food that {x} likes best.",
            "What is {xs} favourite dish?",
            "Can you tell me which food {x} loves to eat?",
        ),
        cloze_train=("{x} loves to eat __.", "The favourite dish of {x} is __."),
        cloze_test=("The food that {x} likes best is __.", "{xs} favourite food is __."),
    ),
    "instrument": Forms(
        train=(
            "Which instrument does {x} play?",
            "What does {x} play in the band?",
            "What is the instrument of {x}?",
            "Tell me {xs} instrument.",
            "On which instrument does {x} make music?",
        ),
        test=(
            "Name the instrument that {x} plays.",
            "What is {xs} instrument in the band?",
            "Can you tell me what {x} plays to make music?",
        ),
        cloze_train=("{x} plays the __.", "The instrument of {x} is the __."),
        cloze_test=("In the band, {x} plays the __.", "{xs} instrument is the __."),
    ),
    "hobby": Forms(
        train=(
            "What is the hobby of {x}?",
            "What does {x} do at the weekend?",
            "Which pastime does {x} enjoy?",
            "Tell me {xs} hobby.",
            "How does {x} spend free time?",
        ),
        test=(
            "Name the hobby that {x} enjoys.",
            "At the weekend, what does {x} enjoy?",
            "Can you tell me which hobby {x} has?",
        ),
        cloze_train=("{x} enjoys the pastime of __.", "The hobby of {x} is __."),
        cloze_test=("In free time, {x} enjoys __.", "{xs} hobby is __."),
    ),
}


def fill(form: str, who: str) -> str:
    """Put a name, or "this person", into a wording and capitalise the first letter."""
    words = form.format(x=who, xs=f"{who}'s")
    return words[0].upper() + words[1:]


def with_options(question: str, options: tuple[str, ...]) -> str:
    """Append the options of a 4-choice question."""
    return f"{question} Options: {', '.join(options)}."


def all_words() -> list[str]:
    """Every wording and value, as text to build a tokenizer from."""
    words = [v for values in VALUES.values() for v in values]
    for forms in FORMS.values():
        for form in (*forms.train, *forms.test, *forms.cloze_train, *forms.cloze_test):
            words.append(fill(form, "this person"))
    return words
