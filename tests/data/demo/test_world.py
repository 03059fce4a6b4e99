"""The demo world: correct French, correct labels, and a text that never changes."""

import hashlib
import re
from collections import Counter
from functools import partial
from itertools import islice
from random import Random

import pytest

from data.demo import entities, lexicon, world
from data.demo.reviews import plural
from data.demo.spelling import inside, plain, span, spell, tagged

EASY = tuple(partial(make, easy=True) for make in (world.sentiment, world.nli, world.qa))
MAKERS = (world.corpus, world.sentiment, world.ner, world.nli, world.qa, *EASY)
# Words of the demo world that begin with a vowel or h and take no elision.
UNELIDED = "hamon|handball|harpe|haguenau|hautbois|hauts-de-france|havre|haye|héros|hockey|homard|hors"
WRONG_FORMS = (
    r"\b(?:de|à) les? |\bsi ils?\b",
    rf"\b(?:le|la|de|que|ne|je|se|me|te|ce|sa|ma|ta) (?!(?:{UNELIDED})\b)[aeiouyhàâéèêîôûœ]",
    rf"\b(?:l|d|qu)'(?:{UNELIDED})\b",
    r"\b(?:l|d|qu|n|j|s|c|m|t)'[^aeiouyhàâéèêîôûœ]",
    r"\bdes? (?:du|de|des)\b",
    r"\ben (?:le|la|les) ",
    r"  |[{}<>\[\]_]|None|\s[.,]|\w[?!:]|''|\.\.",
)
WRONG = [re.compile(pattern, re.IGNORECASE) for pattern in WRONG_FORMS]


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(world.corpus(3000, 5))


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?!]) ", text)


@pytest.mark.parametrize("make", MAKERS)
def test_examples_depend_on_the_seed_and_not_on_the_count(make):
    long = list(make(60, 3))
    assert len(long) == 60
    assert list(make(60, 3)) == long
    assert list(make(25, 3)) == long[:25]
    assert list(islice(make(10**9, 3), 5)) == long[:5], "examples must be generated lazily"
    assert list(make(0, 3)) == []
    assert list(make(50, 1)) != list(make(50, 2))


def test_the_corpus_of_seed_0_does_not_change():
    """The demo's tokenizer and teacher were trained on such text: if it must change, remake them."""
    digest = hashlib.sha256("\n".join(world.corpus(200, 0)).encode()).hexdigest()
    assert digest == "583ad34f3a5080074aa030750547c36df4b72536d69a73c428057dd584c83b25"


SPELLING = {
    "la actrice de [LOC Annecy]": "L'actrice d'Annecy",
    "le acteur de [LOC Le Havre]": "L'acteur du Havre",
    "elle va à [LOC Le Mans]": "Elle va au Mans",
    "il va à <[LOC Les Sables-d'Olonne]>": "Il va aux Sables-d'Olonne",
    "il vient de [LOC Les Sables-d'Olonne]": "Il vient des Sables-d'Olonne",
    "à [LOC Le Havre], il pleut": "Au Havre, il pleut",
    "il vit à [LOC La Rochelle]": "Il vit à La Rochelle",
    "de [LOC Haguenau] à [LOC Hyères]": "De Haguenau à Hyères",
    "la ville de [LOC Hyères]": "La ville d'Hyères",
    "il parle de la Haye": "Il parle de la Haye",
    "le héros et la héroïne": "Le héros et l'héroïne",
    "elle joue de le hautbois": "Elle joue du hautbois",
    "elle joue de le harmonica": "Elle joue de l'harmonica",
    "elle ne joue que <de la harpe>": "Elle ne joue que de la harpe",
    "on sait que il ne est pas de [LOC Évreux]": "On sait qu'il n'est pas d'Évreux",
    "on sait que [PER Irène Roy] se amuse": "On sait qu'Irène Roy s'amuse",
    "si il dort, si elle dort": "S'il dort, si elle dort",
    "sa amie et sa héroïne": "Son amie et son héroïne",
    "ce acteur, ce héros": "Cet acteur, ce héros",
    "salarié de [ORG Écoval]": "Salarié d'Écoval",
    "une ville de le [LOC Grand Est]": "Une ville du Grand Est",
    "une ville de les [LOC Hauts-de-France]": "Une ville des Hauts-de-France",
    "les tours de [PER Yves]": "Les tours d'Yves",
}


@pytest.mark.parametrize(("long", "right"), SPELLING.items())
def test_spelling_by_hand(long, right):
    assert plain(spell(long)) == right


def test_documents_have_no_wrong_form(documents):
    found = [(p.pattern, d) for d in documents for p in WRONG if p.search(d)]
    assert not found, found[:3]


WRONG_TEXTS = ["Il vient de le Mans.", "Il va à les Halles.", "Elle dit que il dort.", "La actrice dort.", "Sa amie."]
WRONG_TEXTS += ["De l'homard.", "Il vient de Annecy.", "Si il dort.", "Il  dort.", "Il {v}."]


@pytest.mark.parametrize("wrong", WRONG_TEXTS)
def test_wrong_forms_are_detected(wrong):
    assert any(pattern.search(wrong) for pattern in WRONG)


def test_documents_are_lines_of_three_to_eight_correct_sentences(documents):
    for document in documents:
        assert "\n" not in document
        parts = sentences(document)
        assert 3 <= len(parts) <= 8, document
        for part in parts:
            assert part[0].isupper() and part[-1] in ".?!", part
            assert spell(part) == part


def test_plural_by_hand():
    words, plurals = ("réussi", "ratée", "affreux", "original"), ("réussis", "ratées", "affreux", "originaux")
    assert [plural(word) for word in (*words, "soigné")] == [*plurals, "soignés"]


def test_participles_agree_with_their_subject(documents):
    """For subjects whose gender is known: "Anne … est née", "Paul … est né", "Elle est née"."""
    wrong = []
    for document in documents:
        wrong += re.findall(rf"\b(?:{'|'.join(lexicon.WOMEN)}|[Ee]lle)(?: \w+)? est (?:né|parti|allé|venu)\b", document)
        wrong += re.findall(rf"\b(?:{'|'.join(lexicon.MEN)}|Il)(?: \w+)? est (?:née|partie|allée|venue)\b", document)
        wrong += re.findall(r"\b[Ii]ls (?:se )?sont \w+ées?\b|\b[Ee]lles (?:se )?sont \w+és\b", document)
        plurals = re.findall(r"\b[Ll]es \w+ (?:ne )?sont (?:pas )?(\w+)", document)
        wrong += [word for word in plurals if word[-1] not in "sx"]
    assert not wrong


def test_pronouns_agree_with_their_person():
    """A portrait is about one person only: it has no "il" for a woman, no "elle" for a man."""
    for seed in range(300):
        text = plain(" ".join(world._portrait(Random(seed))))
        woman = text.split()[0] in lexicon.WOMEN
        assert not re.search(r"\b[Ii]l\b" if woman else r"\b[Ee]lle\b", text), text


def test_fixed_facts_are_the_same_in_every_document(documents):
    firms = {plain(firm.name): firm.facts for firm in entities.FIRMS}
    films = {plain(film.name): film.facts for film in entities.FILMS}
    seen = Counter()
    for document in documents:
        for name, town in re.findall(r"[Ll]e siège (?:de |d')(.+?) se trouve (.+?)\.", document):
            assert plain(spell(f"le siège est à {firms[name]['town']}")) == f"Le siège est {town}"
            seen["town"] += 1
        for name, year in re.findall(r"(?:^|[.] )([^.]+?) est sorti en (\d+)", document):
            if name in films:
                assert year == films[name]["year"]
                seen["year"] += 1
    assert seen["town"] > 50 and seen["year"] > 50


def test_full_names_are_unique():
    assert not set(lexicon.FAMILIES) & set(lexicon.KNOWN_FAMILIES)
    assert len(entities.FEMININE) == len(lexicon.KNOWN_FAMILIES)
    assert len(entities.BOSSES) >= len(lexicon.FIRMS)
    for seed in range(50):
        people = entities.people(Random(seed), 3)
        assert len({person.name.split()[-1] for person in people}) == 3
        assert all(len({person.facts[fact] for person in people}) == 3 for fact in people[0].facts)


def test_vocabulary_size_suits_a_small_tokenizer(documents):
    assert 600 <= len(set(re.findall(r"\w+", " ".join(documents)))) <= 1200


@pytest.mark.parametrize("easy", [False, True])
def test_question_answers_are_exact_spans(easy):
    for example in world.qa(2000, 11, easy):
        (answer,) = example.answers
        assert answer.text
        assert example.context[answer.start : answer.start + len(answer.text)] == answer.text
        assert example.question[0].isupper() and example.question.endswith(" ?")
        assert len(sentences(example.context)) >= 2
        assert not re.search(r"[<>\[\]{}]", example.context + example.question + answer.text)


def test_span_and_tagged_by_hand():
    assert span("Anne vit <à [LOC Brest]> et [PER Paul] à [LOC Lyon].") == ("à Brest", 9)
    words, tags = tagged(spell("la héroïne de [MISC Orages d'été], [PER Anne Roy], vit à [LOC Les Sables-d'Olonne]."))
    expected = "L' héroïne d' Orages d' été , Anne Roy , vit aux Sables-d'Olonne ."
    assert words == tuple(expected.split())
    expected = "O O O B-MISC I-MISC I-MISC O B-PER I-PER O O O B-LOC O"
    assert tags == tuple(expected.split())


def test_ner_tags_are_well_formed_and_words_rejoin():
    kinds = Counter()
    for words, tags in world.ner(2000, 12):
        assert len(words) == len(tags) > 0
        for before, tag in zip(("O", *tags), tags):
            assert re.fullmatch(r"O|[BI]-(PER|LOC|ORG|MISC)", tag)
            if tag.startswith("I-"):
                assert before[1:] == tag[1:], "I-X must follow B-X or I-X"
            kinds[tag] += 1
        text = re.sub(r"' ", "'", " ".join(words))
        text = re.sub(r" ([.,])", r"\1", text)
        assert not any(pattern.search(text) for pattern in WRONG), text
        assert all(part[0].isupper() and part[-1] in ".?!" for part in sentences(text))
    assert set(kinds) == {"O"} | {f"{b}-{x}" for b in "BI" for x in ("PER", "LOC", "ORG", "MISC")}


@pytest.mark.parametrize("easy", [False, True])
def test_labels_are_balanced(easy):
    assert Counter(e.label for e in world.sentiment(400, 2, easy)) == {"0": 200, "1": 200}
    assert set(Counter(e.label for e in world.nli(600, 2, easy)).values()) == {200}


def test_negation_does_not_predict_the_nli_label():
    """Half of the hypotheses of each label are negated, within 4 standard deviations of a binomial distribution."""
    denied, total = Counter(), Counter()
    for example in world.nli(3000, 4):
        total[example.label] += 1
        denied[example.label] += bool(re.search(r"(?:\bne |\bn')(?!.*\bque? )(?!.*\bqu')", example.hypothesis))
    for label, count in total.items():
        assert abs(denied[label] - count / 2) < 4 * (count / 4) ** 0.5, (label, denied[label], count)


def test_nli_labels_on_towns_by_pattern():
    """If the premise gives a person's town, it decides every hypothesis about their town."""
    decided = Counter()
    for example in world.nli(4000, 6):
        verb = r"(?:vit|habite|réside) ((?:à|au|aux) [\w'-]+(?: Rochelle)?)"
        said = re.match(rf"(\w+) (\w+) (n(?:e |'))?{verb}(?: en \w+)?", example.hypothesis)
        known = re.match(rf"(\w+) (\w+),?(?: qui)? {verb}", example.premise)
        if said and known and "pas" not in example.hypothesis:
            same = said[4] == known[3]
            assert example.label == ("entailment" if same else "contradiction"), example
            decided[same] += 1
    assert min(decided[True], decided[False]) > 10


def test_easy_pairs_are_negated_in_contradictions_only():
    for example in world.nli(600, 4, easy=True):
        assert bool(re.search(r"\bne |\bn'", example.hypothesis)) == (example.label == "contradiction"), example


def test_easy_pairs_are_about_a_persons_region():
    """The town that the premise tells of this person decides every label.

    Half of the premises tell another's town, too, before it or after. Of the neutral pairs, 15 of 28 tell a birthplace,
    and in a quarter the hypothesis names the region of the other's town.
    """
    regions = entities.REGION_OF.items()
    region_of = {plain(spell(f"à {town}")).lower(): plain(inside(region)) for town, region in regions}
    others, before, births, misleading = Counter(), 0, 0, 0
    for example in world.nli(1500, 4, easy=True):
        name = " ".join(example.hypothesis.split()[:2])
        towns, of = {}, ""
        for sentence in sentences(example.premise):
            start = " ".join(sentence.split()[:2]).rstrip(",")
            of = start if start.split()[-1] in lexicon.FAMILIES else of  # as before: a pronoun or first name
            if town := re.search(r"(?:vit|habite|réside) (à La \w+|(?:à|au|aux) [\w'-]+)", sentence):
                towns[of] = region_of[town[1].lower()]
        assert (name in towns) == (example.label != "neutral"), example
        assert name not in towns or example.hypothesis.endswith(f" {towns[name]}."), example
        others[example.label] += len(towns.keys() - {name})
        before += not example.premise.startswith(name)
        births += example.label == "neutral" and bool(re.search(r"\bnée? |vu le jour", example.premise))
        told = tuple(f" {region}." for region in towns.values())
        misleading += example.label == "neutral" and example.hypothesis.endswith(told)
    assert all(abs(others[label] - 250) < 4 * 125**0.5 for label in others), others
    assert abs(before - 375) < 4 * (1500 * 3 / 16) ** 0.5
    assert abs(births - 500 * 15 / 28) < 4 * 125**0.5
    assert abs(misleading - 125) < 4 * (500 * 3 / 16) ** 0.5


def test_easy_reviews_are_mostly_of_their_labels_adjectives():
    """Of 1,200 adjectives or so, 80 % and more have the label's polarity; of full reviews, half."""
    shares = []
    for easy in (True, False):
        agreeing = []
        for example in world.sentiment(300, 3, easy):
            for good, words in ((False, lexicon.BAD), (True, lexicon.GOOD)):
                forms = "|".join(form for pair in words for form in pair)
                agreeing += [bool(int(example.label)) == good] * len(re.findall(rf"\b(?:{forms})", example.text))
        shares.append(sum(agreeing) / len(agreeing))
    assert shares[0] > 0.8 and shares[1] < 0.6


def test_the_answers_of_easy_questions():
    """For a fifth, the other entity has a value of the same fact; only the name in the question tells them apart."""
    ages = [e for e in world.qa(2000, 5, easy=True) if re.search(r"quel âge|l'âge", e.question, re.IGNORECASE)]
    both = sum(len(re.findall(r"\d\d ans", e.context)) == 2 for e in ages)
    assert len(ages) > 50 and abs(both - len(ages) / 5) < 4 * (len(ages) * 0.16) ** 0.5


def test_sentiment_needs_more_than_a_bag_of_words():
    """Negative reviews have positive adjectives and the other way round."""
    counts = {0: Counter(), 1: Counter()}
    for example in world.sentiment(2000, 3):
        for good, words in ((0, lexicon.BAD), (1, lexicon.GOOD)):
            found = any(re.search(rf"\b{form}", example.text) for pair in words for form in pair)
            counts[int(example.label)][good] += found
    for label in (0, 1):
        assert counts[label][1 - label] > 500
