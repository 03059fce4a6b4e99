"""Film reviews of the demo world: opinions, with negations and concessions, and a verdict."""

from random import Random

from . import lexicon as lex
from .choices import draw, pick
from .entities import TOWNS, Entity
from .spelling import spell


def plural(adjective: str) -> str:
    """réussi -> réussis, original -> originaux, affreux -> affreux."""
    if adjective.endswith("al"):
        return adjective[:-2] + "aux"
    return adjective if adjective[-1] in "sx" else adjective + "s"


class Opinions:
    """The opinions in one review; no aspect and no adjective is repeated.  denied: share of those by negation"""

    def __init__(self, rng: Random, denied: float = 0.45):
        self.rng, self.denied = rng, denied
        self.aspects = draw(rng, lex.ASPECTS, 6)
        self.adjectives = (draw(rng, lex.BAD, 6), draw(rng, lex.GOOD, 6))

    def adjective(self, good: bool, feminine: bool, many: bool) -> str:
        form = self.adjectives[good].pop()[feminine]
        return plural(form) if many else form

    def clause(self, liked: bool) -> str:
        """ "la fin est réussie", or by negation "la fin n'est pas ratée"."""
        noun, feminine, many = self.aspects.pop()
        denied = self.rng.random() < self.denied
        adjective = self.adjective(liked != denied, feminine, many)
        verb = pick(self.rng, ("sont", "me semblent", "me paraissent") if many else ("est", "me semble", "me paraît"))
        return f"{noun} ne {verb} pas {adjective}" if denied else f"{noun} {verb} {adjective}"

    def pair(self, liked: bool) -> str:
        """Two clauses of the same polarity."""
        return f"{self.clause(liked)} et {self.clause(liked)}"

    def concession(self, liked: bool) -> str:
        """Two clauses of opposite polarity; the reviewer's own is `liked`."""
        shape = int(self.rng.random() * 7)
        if shape < 4:
            given, kept = self.clause(not liked), self.clause(liked)
            shapes = ("{0}, mais {1}", "certes, {0}, mais {1}", "même si {0}, {1}", "{1}, même si {0}")
            return shapes[shape].format(given, kept)
        noun, feminine, many = self.aspects.pop()
        adjective = self.adjective(not liked, feminine, many)
        if shape == 4:
            were = "étaient" if many else "était"
            return f"on me disait que {noun} {were} {adjective}, mais ce n'est pas vrai"
        if shape == 5:
            return f"bien que {noun} {'soient' if many else 'soit'} {adjective}, {self.clause(liked)}"
        article = "des" if many else "une" if feminine else "un"
        return f"malgré {article} {noun.split(' ', 1)[1]} {adjective}, {self.clause(liked)}"


def review(rng: Random, film: Entity, liked: bool, introduced: bool = False) -> list[str]:
    """The sentences of a review: an opening, opinions for and against, usually a verdict.

    introduced: whether the sentences before it already describe the film.
    """
    e = "e" if rng.random() < 0.5 else ""
    article, genre = film.facts["genre"].split(" ", 1)
    this = "cette" if article == "une" else "ce"
    company = pick(rng, ("avec un ami", "avec une amie", "avec ma sœur", "sans rien en attendre"))
    openings = (
        f"{pick(rng, lex.DAYS)}, j'ai vu {film.name}",
        f"j'ai vu {film.name} à {pick(rng, TOWNS)}",
        f"je suis allé{e} voir {film.name} {company}",
        f"on m'a offert une place pour {film.name}",
        f"{film.name} est sorti en {film.facts['year']}",
        f"dans {film.name}, {this} {genre} de {film.facts['director']}, on retrouve {film.facts['lead']}",
    )
    opinions = Opinions(rng)
    body = [pick(rng, (opinions.concession, opinions.concession, opinions.pair))(liked)]
    if rng.random() < 0.6:
        body.append(opinions.concession(liked))
    one, two = (verdict[liked].format(e=e) for verdict in draw(rng, lex.VERDICTS, 2))
    closing = pick(rng, ([], [one], [f"en somme, {one}"], [f"{one} et {two}"]))
    opening = pick(rng, openings[:4] if introduced else openings)
    return [spell(sentence + ".") for sentence in [opening, *body, *closing]]


def easy_review(rng: Random, film: Entity, liked: bool) -> list[str]:
    """Four opinions and a verdict, with few negations and concessions: most adjectives agree with the label."""
    e = "e" if rng.random() < 0.5 else ""
    opinions = Opinions(rng, denied=0.1)
    body = [opinions.concession(liked) if rng.random() < 0.15 else opinions.pair(liked) for _ in range(2)]
    verdict = pick(rng, lex.VERDICTS)[liked].format(e=e)
    return [spell(sentence + ".") for sentence in (f"j'ai vu {film.name}", *body, verdict)]
