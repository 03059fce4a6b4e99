"""The demo world: its corpus of French documents, and labelled examples of the four tasks.

Some facts are fixed (a town's region; a firm's town, sector, year and head; a film's director, year, genre, star and
setting), so that a model can memorise them. The others (a person's town, a firm's number of employees, …) are random
in every document, so that they can only be read there.

Internally, sentences have markup: "[LOC Brest]" is a named entity, "<...>" the answer to a question (`spelling`).
`lexicon` has the vocabulary, `entities` the entities and their facts, `reviews` the film reviews.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from random import Random

from ..tasks import Answer, PairExample, QuestionExample, TextExample, WordsExample
from ..tasks.sequences import NLI_LABELS
from . import lexicon as lex
from .choices import draw, pick
from .entities import FEMININE, FILMS, FIRM, FIRMS, HOME, REGION_OF, TOWNS, Entity, films, firms, people, state, tell
from .reviews import easy_review, review
from .spelling import inside, plain, span, spell, tagged, unanswered

# --- QA and NLI -------------------------------------------------------------------------------------------


def question(rng: Random, max_entities: int = 3) -> tuple[list[str], str, Entity, str]:
    """-> sentences about 2 to max_entities entities of one kind, the answer marked; a question; its entity and fact."""
    kind = pick(rng, (people, people, films, firms))
    entities = kind(rng, 2 + int(rng.random() * (max_entities - 1)))
    facts = draw(rng, list(entities[0].facts), 2 + int(rng.random() * 2))
    about, fact = pick(rng, entities), pick(rng, facts)
    context = []
    for entity in entities:
        context += tell(rng, entity, draw(rng, facts, len(facts)), fact if entity is about else "")
    return context, spell(about.fill(pick(rng, about.statements[fact].asks))), about, fact


def easy_question(rng: Random) -> tuple[list[str], str]:
    """-> two to four sentences about two entities of one kind, the answer marked; a question.

    Four in five questions can be answered by the kind of fact alone, since it is told of one entity only.
    """
    entities = pick(rng, (people, people, films, firms))(rng, 2)
    about, detailed = pick(rng, entities), pick(rng, entities)
    asked, other, further = draw(rng, list(about.facts), 3)
    told_of_both, context = rng.random() < 0.2, []
    for entity in entities:
        facts = [asked if entity is about or told_of_both else other]
        if entity is detailed:
            facts = draw(rng, [*facts, further], 2)
        context += tell(rng, entity, facts, asked if entity is about else "")
    return context, spell(about.fill(pick(rng, about.statements[asked].asks)))


def premise_and_clause(rng: Random, label: str, asserts: bool) -> tuple[list[str], Entity, str]:
    """-> a premise about one or two people; the first of them; a clause about that person with the subject {s}.

    label: the relation of the clause to the premise. asserts: whether the clause is affirmative, for any label.
    """
    about, other = people(rng, 2)
    *told, unsaid = draw(rng, list(about.facts), 3)
    fact = unsaid if label == "neutral" else pick(rng, told)
    premise = tell(rng, about, told)
    if rng.random() < 0.5:
        premise += tell(rng, other, [fact])
    own = rng.random() < 0.5 if label == "neutral" else asserts == (label == "entailment")
    value, statement = (about if own else other).facts[fact], about.statements[fact]
    if fact == "job":
        value = lex.JOB_PAIR[value][about.feminine]
    regions = {REGION_OF[about.facts["town"]], REGION_OF[other.facts["town"]]}
    if fact == "town" and len(regions) == 2 and rng.random() < 0.5:
        value, statement = inside(REGION_OF[value]), lex.REGION_FACT
    template = pick(rng, statement.says if asserts else statement.denies)
    return premise, about, unanswered(about.fill(template, "{s}", value))


def easy_premise_and_clause(rng: Random, label: str) -> tuple[list[str], Entity, str]:
    """As premise_and_clause, with a clause about the region that the person lives in, negated for a contradiction.

    Half of the premises tell another person's town, too, before or after; half of the neutral ones or more tell where
    the person was born.
    """
    about, other = people(rng, 2)
    unrelated = pick(rng, [name for name in about.facts if name not in ("town", "birthplace")])
    first = pick(rng, ("birthplace", unrelated)) if label == "neutral" else "town"
    second = pick(rng, [name for name in about.facts if name not in ("town", first)])
    premise = tell(rng, about, pick(rng, ([first], draw(rng, [first, second], 2))))
    if rng.random() < 0.5:
        of_other = tell(rng, other, ["town"])
        premise = of_other + premise if rng.random() < 0.5 else premise + of_other
    lives = other if label == "neutral" and rng.random() >= 0.5 else about
    template = pick(rng, lex.REGION_FACT.denies if label == "contradiction" else lex.REGION_FACT.says)
    return premise, about, unanswered(about.fill(template, "{s}", inside(REGION_OF[lives.facts["town"]])))


# --- Documents --------------------------------------------------------------------------------------------


def _portrait(rng: Random) -> list[str]:
    """A person and their firm; the last sentence repeats the person's job."""
    (person,) = people(rng, 1)
    facts = draw(rng, [fact for fact in person.facts if fact not in ("job", "firm")], 3)
    opening = tell(rng, person, ["job", "firm", *facts[:2]])
    character = " et ".join(pair[person.feminine] for pair in draw(rng, lex.CHARACTERS, 2))
    firm = FIRM[person.facts["firm"]]
    rest = [
        f"{pick(rng, person.nouns)} est {character}.",
        f"le siège de {firm.name} se trouve à {firm.facts['town']}.",
        f"{firm.name} travaille dans {firm.facts['sector']}.",
        f"{unanswered(state(rng, person, facts[2], pick(rng, person.nouns)))}.",
    ]
    nickname, job = person.nouns[0], person.facts["job"]
    the, only, good = ("la", "la seule", "une bonne") if person.feminine else ("le", "le seul", "un bon")
    reminders = (
        f"chez {firm.name}, {nickname} est {only} {job}.",
        f"{nickname} est {good} {job}.",
        f"chez {firm.name}, tout le monde connaît {nickname}, {the} {job}.",
    )
    return opening + [spell(s) for s in [*draw(rng, rest, 2), pick(rng, reminders)]]


def _pair(rng: Random) -> list[str]:
    """Two people who know each other: their differences, then what they do together."""
    one, two = people(rng, 2)
    facts = draw(rng, ["town", "birthplace", "age", "sport", "instrument", "dish", "film", "job"], 2)
    relation = pick(rng, lex.RELATIONS)[two.feminine]
    first, second, women = one.nouns[0], two.nouns[0], one.feminine and two.feminine
    they, both, e = ("elles", "toutes les deux", "es") if women else ("ils", "tous les deux", "s")
    sentences = tell(rng, one, [facts[0]])
    against = pick(rng, (", alors que ", ", tandis que ", ", mais "))
    sentences += [
        f"{'sa' if two.feminine else 'son'} {relation} se appelle {two.name}.",
        f"{state(rng, two, facts[0], second)}.",
        f"{state(rng, one, facts[1], first)}{against}{state(rng, two, facts[1], second)}.",
    ]
    place, day = pick(rng, TOWNS), pick(rng, lex.DAYS)
    together = (
        f"{day}, {they} sont parti{e} {both} pour {place}.",
        f"{they} se sont retrouvé{e} à {place} {pick(rng, lex.SEASONS)}.",
        f"{they} sont resté{e} une semaine à {place}.",
        f"{they} sont allé{e} voir {pick(rng, FILMS).name} au cinéma.",
        f"{they} se sont promené{e} dans les rues de {place}.",
        f"{they} sont devenu{e} inséparables.",
    )
    return [spell(unanswered(s)) for s in sentences + draw(rng, together, 2)]


def _firm(rng: Random) -> list[str]:
    """A firm, its head, and an employee."""
    (firm,), (person,) = firms(rng, 1), people(rng, 1)
    boss = firm.facts["boss"]
    article, title = ("la", "directrice") if FEMININE[boss] else ("le", "directeur")
    told = tell(rng, firm, draw(rng, ["town", "sector", "year", "staff"], 3 + int(rng.random() * 2)))
    job, town = person.facts["job"], firm.facts["town"]
    elsewhere = pick(rng, [other for other in TOWNS if other != town])
    rest = [
        f"{boss}, {article} {title} de {firm.name}, vit à {HOME[boss]}.",
        f"{boss} est {article} {title} de cette entreprise.",
        f"{person.name} travaille chez {firm.name} comme {job}.",
        f"la société a recruté {person.name}, {person.facts['age']}, comme {job}.",
        f"{firm.name} a ouvert un bureau à {elsewhere}, mais son siège reste à {town}.",
    ]
    first, second = draw(rng, [rest[:2], rest[2:4], rest[4:]], 2)
    return told + [spell(pick(rng, first)), spell(pick(rng, second))]


def _film(rng: Random) -> list[str]:
    """A film, its director and its star."""
    (film,) = films(rng, 1)
    director, lead = film.facts["director"], film.facts["lead"]
    told = tell(rng, film, draw(rng, list(film.facts), 3))
    hero = "la héroïne est jouée" if FEMININE[lead] else "le héros est joué"
    role = pick(rng, lex.JOBS)[FEMININE[lead]]
    rest = [
        f"{hero} par {lead}, qui vient de {HOME[lead]}.",
        f"dans ce film, {lead} est {role} à {film.facts['town']}.",
        f"{'la réalisatrice' if FEMININE[director] else 'le réalisateur'} du film est {director}.",
        f"{director} a tourné ce film {pick(rng, lex.SEASONS)}.",
        f"{'la actrice' if FEMININE[lead] else 'le acteur'} {lead} tient ici un grand rôle.",
    ]
    (viewer,) = people(rng, 1)
    end = f"{viewer.name} a vu {film.name} {pick(rng, ('deux', 'trois', 'dix'))} fois."
    return told + [spell(s) for s in [*draw(rng, rest, 2), end]]


def _journey(rng: Random) -> list[str]:
    """A person leaves home, spends a day in another town, and returns."""
    one, two = people(rng, 2)
    home, away = one.facts["town"], two.facts["town"]
    relation = pick(rng, lex.RELATIONS)[two.feminine]
    e, il = "e" * one.feminine, one.il
    day, later = draw(rng, lex.DAYS, 2)
    dish, weather = pick(rng, lex.DISHES), pick(rng, lex.WEATHER)[1]
    they, es = ("elles", "es") if one.feminine and two.feminine else ("ils", "s")
    middle = [
        f"{weather} quand {il} est descendu{e} du train.",
        f"{'sa' if two.feminine else 'son'} {relation} {two.name} est venu{'e' * two.feminine} à la gare.",
        f"à midi, {they} ont mangé de {dish}.",
    ]
    evening = (
        f"le soir, {they} sont allé{es} voir {pick(rng, FILMS).name}.",
        f"le soir, {they} se sont couché{es} tôt.",
        f"le soir, {they} se sont promené{es} dans les rues de {away}.",
    )
    end = (
        f"{later}, {il} est rentré{e} à {home}.",
        f"{later}, {one.nouns[0]} est revenu{e} à {home}.",
        f"{later}, {one.nouns[0]} a quitté {away} et {il} est rentré{e} à {home}.",
    )
    start = (
        f"{day}, {one.name} est parti{e} de {home} pour aller à {away}.",
        f"{one.name}, qui vit à {home}, est allé{e} à {away} {day}.",
    )
    return [spell(s) for s in [pick(rng, start), *middle, pick(rng, evening), pick(rng, end)]]


def _town(rng: Random) -> list[str]:
    """A town, its region, its weather, and people, a firm and a film there."""
    town, (person, friend) = pick(rng, TOWNS), people(rng, 2)
    trade = f"{'une' if friend.feminine else 'un'} {friend.facts['job']}"
    (now, _), (_, then) = draw(rng, lex.WEATHER, 2)
    rest = [
        f"{pick(rng, lex.SEASONS)}, on y mange de {pick(rng, lex.DISHES)}.",
        pick(rng, (f"aujourd'hui, {now} à {town}, mais hier {then}.", f"hier, {then} à {town}.")),
        f"{person.name} y habite depuis {pick(rng, lex.YEARS[30:])} et pratique {person.facts['sport']}.",
        f"{trade} de {town}, {friend.name}, joue de {friend.facts['instrument']}.",
    ]
    rest += [f"{f.name} y a son siège." for f in FIRMS if f.facts["town"] == town][:1]
    rest += [f"la histoire de {f.name} se passe à {town}." for f in FILMS if f.facts["town"] == town][:1]
    start = pick(rng, (f"{town} est une ville de {REGION_OF[town]}.", f"{town} se trouve {inside(REGION_OF[town])}."))
    return [spell(s) for s in [start, *draw(rng, rest, 3 + int(rng.random() * 2))]]


def _quiz(rng: Random) -> list[str]:
    """A context, a question about it, and the answer."""
    context, asked, about, fact = question(rng, 2)
    (answer,) = [span(sentence)[0] for sentence in context if "<" in sentence]
    subject = about.il if about.statements is lex.PERSON_FACTS else about.nouns[0]
    reply = (f"Réponse : {answer}.", spell(state(rng, about, fact, subject) + "."))
    return [unanswered(sentence) for sentence in [*context, asked, pick(rng, reply)]]


def _conclusion(rng: Random) -> list[str]:
    """A premise, and a sentence with a clause that is true, false or undecided."""
    label = pick(rng, sorted(NLI_LABELS))
    premise, about, clause = premise_and_clause(rng, label, label == "neutral" or rng.random() < 0.5)
    frames = {
        "entailment": ("autrement dit, {}.", "on sait donc que {}.", "il est donc vrai que {}."),
        "contradiction": ("il est faux de dire que {}.", "on se trompe si l'on dit que {}."),
        "neutral": ("on ne sait pas si {}.", "le texte ne dit pas si {}."),
    }
    conclusion = pick(rng, frames[label]).format(clause.format(s=pick(rng, (about.name, about.nouns[0]))))
    return [*premise, spell(conclusion)]


def _review(rng: Random) -> list[str]:
    """A review, sometimes after two facts about the film."""
    (film,) = films(rng, 1)
    told = tell(rng, film, draw(rng, list(film.facts), 2)) if rng.random() < 0.4 else []
    return told + review(rng, film, rng.random() < 0.5, introduced=bool(told))


KINDS = (_portrait, _pair, _firm, _film, _journey, _town, _quiz, _conclusion, _review)


def document(rng: Random) -> list[str]:
    """The three to eight sentences of a document, with markup."""
    while True:
        sentences = pick(rng, KINDS)(rng)
        if 3 <= len(sentences) <= 8:
            return sentences


# --- Corpus and tasks -------------------------------------------------------------------------------------


def _balanced(rng: Random, names: Sequence, count: int) -> Iterator:
    """`count` labels in random order; each run of 2 * len(names) has every name twice."""
    deck: list = []
    for _ in range(count):
        deck = deck or draw(rng, [*names, *names], 2 * len(names))
        yield deck.pop()


def corpus(num_documents: int, seed: int) -> Iterator[str]:
    """Documents of one line each: three to eight sentences about a few entities."""
    rng = Random(seed)
    for _ in range(num_documents):
        yield plain(" ".join(document(rng)))


def sentiment(count: int, seed: int, easy: bool = False) -> Iterator[TextExample]:
    """Film reviews; half are favourable (label 1), half not (label 0). easy: with fewer negations and concessions."""
    rng, make = Random(seed), easy_review if easy else review
    for label in _balanced(rng, (0, 1), count):
        yield TextExample(plain(" ".join(make(rng, pick(rng, FILMS), bool(label)))), str(label))


def ner(count: int, seed: int) -> Iterator[WordsExample]:
    """One or two consecutive sentences of a document, as words ("l'" and "." are words) and tags.

    Types: PER (people), LOC (towns and regions), ORG (firms), MISC (films).
    """
    rng = Random(seed)
    for _ in range(count):
        sentences = document(rng)
        start = int(rng.random() * len(sentences))
        yield WordsExample(*tagged(" ".join(sentences[start : start + pick(rng, (1, 2))])))


def nli(count: int, seed: int, easy: bool = False) -> Iterator[PairExample]:
    """Pairs, a third of each label: by the premise the hypothesis is true ("entailment"), false ("contradiction"),
    or undecided ("neutral"). easy: see easy_premise_and_clause."""
    rng = Random(seed)
    for label in _balanced(rng, sorted(NLI_LABELS), count):
        make = easy_premise_and_clause if easy else partial(premise_and_clause, asserts=rng.random() < 0.5)
        premise, about, clause = make(rng, label)
        hypothesis = spell(clause.format(s=about.name) + ".")
        yield PairExample(plain(" ".join(premise)), plain(hypothesis), label)


def qa(count: int, seed: int, easy: bool = False) -> Iterator[QuestionExample]:
    """Questions on contexts in which other entities have an answer of the same type. easy: see easy_question."""
    rng, make = Random(seed), easy_question if easy else question
    for number in range(count):
        sentences, asked, *_ = make(rng)
        context = " ".join(sentences)
        yield QuestionExample(str(number), plain(context), plain(asked), (Answer(*span(context)),))
