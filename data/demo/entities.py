"""The people, towns, firms and films of the demo world, their facts, and sentences that state them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from . import lexicon as lex
from .choices import draw, pick
from .spelling import plain, spell, unanswered

# --- Entities ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entity:
    """A person, firm or film: its names in sentences, grammatical gender, and facts."""

    name: str  # full name, with markup
    nouns: tuple[str, ...]  # other unambiguous references: "[PER Marie]", "ce film"
    feminine: bool
    statements: dict[str, lex.Fact]
    facts: dict[str, str]

    @property
    def il(self) -> str:
        return "elle" if self.feminine else "il"

    def fill(self, template: str, subject: str = "", value: str = "") -> str:
        """The template with its fields replaced; {s} by subject, {v} by value."""
        return template.format(s=subject, v=value, p=self.name, il=self.il, e="e" if self.feminine else "")


TOWNS = [f"[LOC {town}]" for towns in lex.REGIONS.values() for town in towns]


def _mark_region(region: str) -> str:
    article, name = region.split(" ", 1) if region[0].islower() else ("", region)
    return f"{article} [LOC {name}]".strip()


REGION_OF = {f"[LOC {town}]": _mark_region(r) for r, towns in lex.REGIONS.items() for town in towns}


def _known_people() -> list[tuple[str, bool]]:
    """(name, feminine) of every director, star and head of a firm; no two share a family name."""
    rng = Random(2022)
    women, men = draw(rng, lex.WOMEN, len(lex.WOMEN)), draw(rng, lex.MEN, len(lex.MEN))
    names = (f"[PER {(women if i % 2 else men)[i // 2]} {family}]" for i, family in enumerate(lex.KNOWN_FAMILIES))
    return [(name, bool(i % 2)) for i, name in enumerate(names)]


KNOWN = _known_people()
DIRECTORS, STARS, BOSSES = KNOWN[:8], KNOWN[8:16], KNOWN[16:]
FEMININE = dict(KNOWN)
HOME = {name: TOWNS[(7 * i) % len(TOWNS)] for i, (name, _) in enumerate(KNOWN)}


def _make_films(rng: Random) -> Iterator[Entity]:
    for title in lex.FILMS:
        facts = {"director": pick(rng, DIRECTORS)[0], "year": pick(rng, lex.YEARS), "genre": pick(rng, lex.GENRES)}
        facts["lead"] = pick(rng, STARS)[0]
        facts["town"] = next((town for town in TOWNS if plain(town) in title), pick(rng, TOWNS))
        yield Entity(f"[MISC {title}]", ("ce film", "le film"), False, lex.FILM_FACTS, facts)


def _make_firms(rng: Random) -> Iterator[Entity]:
    nouns = ("cette entreprise", "cette société", "la entreprise")
    for name, (boss, _) in zip(lex.FIRMS, BOSSES):
        facts = {"town": pick(rng, TOWNS), "sector": pick(rng, lex.SECTORS), "year": pick(rng, lex.YEARS), "boss": boss}
        yield Entity(f"[ORG {name}]", nouns, True, lex.FIRM_FACTS, facts)


FILMS, FIRMS = list(_make_films(Random(1))), list(_make_firms(Random(2)))
FILM, FIRM = {film.name: film for film in FILMS}, {firm.name: firm for firm in FIRMS}
AGES = [f"{age} ans" for age in range(21, 70)]
DRAWN = {"town": TOWNS, "birthplace": TOWNS, "job": lex.JOBS, "firm": list(FIRM), "age": AGES, "sport": lex.SPORTS}
DRAWN |= {"instrument": lex.INSTRUMENTS, "dish": lex.DISHES, "film": list(FILM)}


def people(rng: Random, count: int) -> list[Entity]:
    """`count` new people, who share no name and no fact."""
    columns = {fact: draw(rng, values, count) for fact, values in DRAWN.items()}
    names = zip(*(draw(rng, names, count) for names in (lex.WOMEN, lex.MEN, lex.FAMILIES)))
    found = []
    for i, (woman, man, family) in enumerate(names):
        feminine = rng.random() < 0.5
        first = woman if feminine else man
        facts = {fact: column[i] for fact, column in columns.items()}
        facts["job"] = facts["job"][feminine]
        found.append(Entity(f"[PER {first} {family}]", (f"[PER {first}]",), feminine, lex.PERSON_FACTS, facts))
    return found


def films(rng: Random, count: int) -> list[Entity]:
    """`count` films of the world."""
    return draw(rng, FILMS, count)


def firms(rng: Random, count: int) -> list[Entity]:
    """`count` firms of the world, with a new number of employees."""
    staff = draw(rng, [str(10 * tens) for tens in range(2, 99)], count)
    return [replace(f, facts={**f.facts, "staff": n}) for f, n in zip(draw(rng, FIRMS, count), staff)]


# --- Statements -------------------------------------------------------------------------------------------


def state(rng: Random, entity: Entity, fact: str, subject: str) -> str:
    """A statement of a fact of the entity, with its value marked as an answer."""
    return entity.fill(pick(rng, entity.statements[fact].says), subject, entity.facts[fact])


def refer(rng: Random, entity: Entity, last: str) -> str:
    """A later reference to the entity; a pronoun only if the last sentence names no other person."""
    others = [name for name in re.findall(r"\[PER [^]]+]", last) if name not in (entity.name, *entity.nouns)]
    return entity.il if not others and rng.random() < 0.6 else pick(rng, entity.nouns)


def tell(rng: Random, entity: Entity, facts: Sequence[str], answer: str = "") -> list[str]:
    """Sentences that state these facts, in this order; the full name is in the first only.

    answer: the fact that keeps its answer mark.
    """
    sentences, queue = [], list(facts)
    while queue:
        subject = refer(rng, entity, sentences[-1]) if sentences else entity.name
        clauses = [state(rng, entity, fact, "") for fact in queue[:2]]
        clauses = [clause if fact == answer else unanswered(clause) for fact, clause in zip(queue, clauses)]
        shape = rng.random() if len(clauses) == 2 else 0.0
        if shape > 0.75 and subject.startswith("["):
            text, used = f"{subject}, qui{clauses[0]},{clauses[1]}.", 2
        elif shape > 0.4 and clauses[1].split()[0] not in ("est", clauses[0].split()[0]):
            text, used = f"{subject}{clauses[0]} et{clauses[1]}.", 2
        else:
            text, used = f"{subject}{clauses[0]}.", 1
        sentences.append(spell(text))
        queue = queue[used:]
    return sentences
