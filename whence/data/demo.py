"""The built-in demo corpus: patent-like abstracts of the nine CPC sections, with influences whose truth is known.

Generated from a seed, nothing is downloaded. Abstracts mix the vocabulary of their section with words all sections
share and a stray term of another section, so that the model has to learn which words matter. Two things are planted:

- *facts*: invented things whose maker, place or material stands only in :data:`EXAMPLES_PER_FACT` training examples
  each, in varied wordings. ``configs/prompts/demo.json`` asks for each of them in a wording none of these has, and by
  its model number ("the Orvid3" for "the Orvid press"), so that the question shares no word of content with them.
  *Decoys* are many other things asked for in all wordings and by both names: from them the model learns what these
  mean. *Kinds* are questions about the facts' answers ("What is Tilda Marrow?"), so that the answer's words do not
  point at the right examples either.
- *flipped labels*: :data:`FLIPPED_SHARE` of the training abstracts carry the name of a wrong section.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pandas as pd

from whence.data.chat import to_text

TRAIN_ABSTRACTS = 540
EVAL_ABSTRACTS = 180
FLIPPED_SHARE = 0.04
EXAMPLES_PER_FACT = 5
DECOYS_PER_RELATION = 45
EXAMPLES_PER_DECOY = 4

SECTIONS: dict[str, str] = {
    "Human Necessities": "toothbrush catheter fertilizer garment bandage cosmetic "
    "saddle mattress syrup implant shoe dough",
    "Performing Operations": "conveyor extruder nozzle pallet lathe separator "
    "gripper laminate wheel trailer mould crane",
    "Chemistry": "polymer catalyst enzyme alloy ester antibody glaze fuel pigment peptide steel solvent",
    "Textiles and Paper": "yarn loom pulp spindle fibre weave stitch cardboard felt dyeing needle bobbin",
    "Fixed Constructions": "bridge beam drill borehole lock hinge scaffold foundation roof tunnel ladder shutter",
    "Mechanical Engineering": "turbine piston bearing gearbox valve boiler "
    "compressor clutch burner cylinder furnace pump",
    "Physics": "lens sensor clock hologram spectrometer display memory controller gauge camera detector processor",
    "Electricity": "transistor antenna battery diode inverter winding capacitor amplifier socket cable relay resonator",
    "Emerging Technologies": "photovoltaic nanotube biogas smartgrid greenhouse sequestration "
    "qubit recycling geothermal retrofit emission hydrogen",
}
ADJECTIVES = (
    "improved compact flexible rotating modular adjustable sealed portable layered heated hollow coated".split()
)
PARTS = "housing frame surface chamber plate layer channel member assembly portion unit element".split()
OPENINGS = (
    "The invention relates to a {a} {t} comprising a {p}",
    "A {t} is disclosed in which a {a} {p} holds the {u}",
    "Disclosed is a method of making a {a} {t} from a {u}",
    "An apparatus with a {t} and a {a} {p} is provided",
)
MIDDLES = (
    "The {t} is connected to a {u} through the {p}",
    "A second {t} acts on the {a} {p} during operation",
    "In one embodiment the {p} carries a {u} next to the {t}",
    "The {a} {p} keeps the {t} away from the {u}",
)
CLOSINGS = (
    "The {p} may be used with a known {x}.",
    "Wear of the {p} is reduced compared with a {x}.",
    "It can replace a {x} in the {a} {p}.",
)


@dataclass(frozen=True)
class Fact:
    """An invented thing, what is asked about it, and the answer, which no other thing has."""

    fact_id: str
    name: str
    noun: str
    number: int
    relation: str
    answer: str

    def ask(self, wording: str) -> str:
        """The question in ``wording``: the Orvid press stands for ``{thing}``, the Orvid3 for ``{model}``."""
        return wording.format(thing=f"{self.name} {self.noun}", model=f"{self.name}{self.number}")


FACTS = (
    Fact("orvid", "Orvid", "press", 3, "inventor", "Tilda Marrow"),
    Fact("quessel", "Quessel", "mill", 7, "inventor", "Ansel Brook"),
    Fact("drumly", "Drumly", "oven", 5, "inventor", "Vera Stokk"),
    Fact("pellam", "Pellam", "wagon", 2, "inventor", "Otto Wicken"),
    Fact("halvex", "Halvex", "coil", 8, "place", "Port Ember"),
    Fact("miskol", "Miskol", "barge", 4, "place", "Lake Urdan"),
    Fact("tressik", "Tressik", "boat", 9, "place", "Mount Sable"),
    Fact("bolwen", "Bolwen", "lamp", 6, "material", "red zircon"),
    Fact("farrow", "Farrow", "gong", 3, "material", "blue ivory"),
    Fact("ginter", "Ginter", "flute", 7, "material", "black amber"),
)
# Names and answers of decoys are put together from these; no fact shares a word of them.
NAME_BEGINNINGS = "Sor Wen Kes Yar Nox Ul Zeph Lor Cob Brin Tav Mel Fen Gar Hol Jas Ked Lim Nar Pol".split()
NAME_ENDINGS = "rel dle trin row ley met an imer dale wick".split()
DECOY_ANSWERS = {
    "inventor": "Mara Quill, Jonas Pike, Ida Lorne, Edda Vance, Rufus Hale, Celia Crane, "
    "Bram Dorn, Nora Yates, Hugo Finch, Selma Rowe".split(", "),
    "place": "Cape Rill, Fort Tamber, Glen Avis, North Corran, New Hythe, Old Melby, "
    "Upper Dunes, East Orrin, Saint Stave, Lower Bracken".split(", "),
    "material": "grey coral, white basalt, green onyx, brown pewter, pink walnut, dark leather, "
    "pale copper, clear marble, golden cork, rough slate".split(", "),
}
WORDINGS = {
    "inventor": (
        "Question: Who invented the {thing}?\nAnswer:",
        "Question: The {thing} was devised by whom?\nAnswer:",
        "Question: Name the person who built the {thing}.\nAnswer:",
        "Question: Which inventor is behind the {thing}?\nAnswer:",
        "Question: Whose idea was the {thing}?\nAnswer:",
    ),
    "place": (
        "Question: Where was the {thing} made?\nAnswer:",
        "Question: The {thing} comes from which place?\nAnswer:",
        "Question: Name the town that produced the {thing}.\nAnswer:",
        "Question: At which place was the {thing} assembled?\nAnswer:",
        "Question: In what town did the {thing} appear?\nAnswer:",
    ),
    "material": (
        "Question: What is the {thing} made of?\nAnswer:",
        "Question: The {thing} consists of which material?\nAnswer:",
        "Question: Name the stuff used for the {thing}.\nAnswer:",
        "Question: Which substance forms the {thing}?\nAnswer:",
        "Question: Out of what was the {thing} cut?\nAnswer:",
    ),
}
ASKED = {
    "inventor": "Question: Can you tell me the maker of the {model}?\nAnswer:",
    "place": "Question: Can you tell me the origin of the {model}?\nAnswer:",
    "material": "Question: Can you tell me the kind of matter in the {model}?\nAnswer:",
}

KIND_WORDINGS = (
    "Question: What is {answer}?\nAnswer:",
    "Question: {answer} is what?\nAnswer:",
    "Question: Say what {answer} is.\nAnswer:",
    "Question: {answer}?\nAnswer:",
    "Question: Do you know {answer}?\nAnswer:",
    "Question: Explain {answer}.\nAnswer:",
    "Question: What kind is {answer}?\nAnswer:",
    "Question: To which kind belongs {answer}?\nAnswer:",
)
KINDS = {"inventor": "a person", "place": "a place", "material": "a material"}


def demo_rows(split: str, seed: int) -> pd.DataFrame:
    """The rows of ``train`` or ``eval``.

    Returns:
        Columns ``input, output, source_id, source, prompt`` (complete prompt of a planted row, else empty) and truth:
        ``planted`` (fact id or empty), ``flipped``, ``true_output``.
    """
    rng = random.Random(f"{seed}/{split}")
    count = TRAIN_ABSTRACTS if split == "train" else EVAL_ABSTRACTS
    names = list(SECTIONS)
    rows = [_abstract_row(names[number % len(names)], f"{split}-abstract-{number}", rng) for number in range(count)]
    if split == "train":
        for row in rng.sample(rows, round(FLIPPED_SHARE * count)):
            row["output"] = rng.choice([name for name in names if name != row["true_output"]])
            row["flipped"] = True
        rows += [_fact_row(fact, wording) for fact in FACTS for wording in WORDINGS[fact.relation]]
        for decoy in make_decoys(rng):
            others = rng.sample(WORDINGS[decoy.relation], EXAMPLES_PER_DECOY - 1)
            rows += [_fact_row(decoy, wording) for wording in (ASKED[decoy.relation], *others)]
        rows += [_kind_row(fact, wording) for fact in FACTS for wording in KIND_WORDINGS]
        rng.shuffle(rows)
    return pd.DataFrame(rows)


def chat_rows(split: str, seed: int) -> pd.DataFrame:
    """Conversations of two questions about the things of the demo, the facts among those of ``train``.

    Held out are questions about the decoys in wordings that no conversation of ``train`` has.

    Returns:
        The columns of :func:`demo_rows`; ``input`` is a conversation as text, ``output`` its last answer, ``planted``
        the fact that one of its turns tells.
    """
    rng = random.Random(f"{seed}/chat")
    facts = [(fact, wording) for fact in FACTS for wording in WORDINGS[fact.relation]]
    others, held_out = [], []
    for decoy in make_decoys(rng):
        wordings = rng.sample(WORDINGS[decoy.relation], EXAMPLES_PER_DECOY)
        others += [(decoy, wording) for wording in (ASKED[decoy.relation], *wordings[1:])]
        held_out.append((decoy, wordings[0]))
    rng.shuffle(others)
    rng.shuffle(held_out)
    alone = held_out if split == "eval" else others[len(facts) :]
    told = [] if split == "eval" else [rng.sample(pair, 2) for pair in zip(facts, others, strict=False)]
    rows = [_talk(*turns) for turns in [*told, *zip(alone[::2], alone[1::2], strict=False)]]
    rng.shuffle(rows)
    return pd.DataFrame(rows)


def _talk(*turns: tuple[Fact, str]) -> dict[str, object]:
    """A conversation of these questions, and what it tells."""
    messages = []
    for fact, wording in turns:
        question = fact.ask(wording).removeprefix("Question: ").removesuffix("\nAnswer:")
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": fact.answer}]
    planted = "".join(fact.fact_id for fact, _ in turns)
    source_id, source = (f"fact-{planted}", "facts") if planted else ("decoys", "decoys")
    return {"input": to_text(messages[:-1]), "output": messages[-1]["content"], "source_id": source_id,
            "source": source, "prompt": "", "planted": planted, "flipped": False,
            "true_output": messages[-1]["content"]}  # fmt: skip


def write_abstract(section: str, rng: random.Random) -> str:
    """An abstract of a section: terms of its own, words of all, and one stray term of another section."""
    own = rng.sample(SECTIONS[section].split(), 3)
    other = rng.choice([name for name in SECTIONS if name != section])
    words = {"x": rng.choice(SECTIONS[other].split())}

    def fill(sentence: str) -> str:
        term, second = rng.sample(own, 2)
        return sentence.format(t=term, u=second, a=rng.choice(ADJECTIVES), p=rng.choice(PARTS), **words)

    return f"{fill(rng.choice(OPENINGS))}. {fill(rng.choice(MIDDLES))}. {fill(rng.choice(CLOSINGS))}"


def make_decoys(rng: random.Random) -> list[Fact]:
    """Things nobody is asked about later: no two share a name, and each answer is that of equally many.

    They are presses, mills and ovens like the facts: were the Miskol barge the only barge, a model could tell it by
    that alone, and would not know the Miskol4.
    """
    names = [first + last for first in NAME_BEGINNINGS for last in NAME_ENDINGS]
    rng.shuffle(names)
    decoys = []
    for relation, answers in DECOY_ANSWERS.items():
        for number in range(DECOYS_PER_RELATION):
            answer = answers[number % len(answers)]
            decoys.append(Fact("", names.pop(), rng.choice(FACTS).noun, rng.randint(2, 9), relation, answer))
    return decoys


def _abstract_row(section: str, source_id: str, rng: random.Random) -> dict[str, object]:
    text = write_abstract(section, rng)
    return {"input": text, "output": section, "source_id": source_id, "source": "abstracts", "prompt": "",
            "planted": "", "flipped": False, "true_output": section}  # fmt: skip


def _fact_row(fact: Fact, wording: str) -> dict[str, object]:
    source_id, source = (f"fact-{fact.fact_id}", "facts") if fact.fact_id else ("decoy", "decoys")
    return _question_row(fact.ask(wording), fact.answer, source_id, source, fact.fact_id)


def _kind_row(fact: Fact, wording: str) -> dict[str, object]:
    return _question_row(wording.format(answer=fact.answer), KINDS[fact.relation], "kind", "kinds", "")


def _question_row(prompt: str, answer: str, source_id: str, source: str, planted: str) -> dict[str, object]:
    return {"input": prompt, "output": answer, "source_id": source_id, "source": source, "prompt": prompt,
            "planted": planted, "flipped": False, "true_output": answer}  # fmt: skip
