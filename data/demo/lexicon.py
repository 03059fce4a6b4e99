"""The vocabulary of the demo world, and templates of the sentences that state its facts.

Articles and prepositions are written in full ("la escrime", "le hautbois", "de {v}", "que {s}"): `spelling.spell`
makes every elision and contraction.

Template fields: {s} subject, {v} value of the fact, {p} full name of the entity, {il} its pronoun, {e} its feminine
ending. <...> marks the answer to the question about the fact. Every statement begins with "{s} ", so that two can
share a subject.
"""

from typing import NamedTuple


class Fact(NamedTuple):
    """Templates that state, deny and ask for a fact. Two different values of a fact contradict each other."""

    says: tuple[str, ...]
    denies: tuple[str, ...]
    asks: tuple[str, ...]


def _list(text: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()).split(", "))


def _pairs(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(pair.split("/")) for pair in _list(text))


def _fact(text: str) -> Fact:
    """From three lines: statements and denials, both without "{s} ", and questions, separated by |."""
    says, denies, asks = (line.strip().split(" | ") for line in text.split("\n"))
    return Fact(*(tuple(f"{{s}} {each}" for each in statements) for statements in (says, denies)), tuple(asks))


# --- People -----------------------------------------------------------------------------------------------

WOMEN = _list("""Agathe, Alice, Amina, Anne, Béatrice, Camille, Chloé, Clara, Denise, Élise, Emma, Fanny, Hélène, Inès,
    Irène, Jeanne, Julie, Karine, Léa, Louise, Lucie, Manon, Margot, Nadia, Nora, Odile, Pauline, Rose, Sophie, Zoé""")
MEN = _list("""Adrien, Alain, Antoine, Arthur, Bruno, Cédric, Damien, Denis, Émile, Éric, Fabien, Gilles, Hugo, Ismaël,
    Jules, Karim, Louis, Luc, Marc, Mathieu, Nicolas, Olivier, Paul, Pierre, Quentin, Rachid, Samuel, Théo, Victor,
    Yves""")
FAMILIES = _list("""Adam, Aubert, Barbier, Blanchard, Caron, Colin, Dumas, Dupuis, Étienne, Fabre, Faure, Garnier,
    Gauthier, Guérin, Hamon, Imbert, Joly, Lacroix, Laurent, Leclerc, Lemoine, Mercier, Meunier, Moreau, Noël, Perrin,
    Picard, Renard, Rey, Rivière, Robin, Roussel, Roy, Simon, Tessier, Vidal, Weber""")
# Directors, actors and heads of firms have other family names, so that every full name is one person.
KNOWN_FAMILIES = _list("""Abadie, Arnaud, Bailly, Besson, Blondel, Bonnet, Bouvier, Carpentier, Chevalier, Cordier,
    Daniel, Delmas, Évrard, Fontaine, Gaillard, Gilbert, Guillot, Hubert, Jacquet, Keller, Klein, Lambert, Lebrun,
    Maillard, Marchand, Michaud, Ollivier, Pasquier, Poirier, Prévost, Rolland, Royer, Sabatier, Thibault, Vasseur,
    Verdier, Vincent, Wagner""")

# Masculine/feminine, also below.
JOBS = _pairs("""acheteur/acheteuse, architecte/architecte, assistant/assistante, avocat/avocate, caissier/caissière,
    concepteur/conceptrice, chimiste/chimiste, comptable/comptable, cuisinier/cuisinière, dessinateur/dessinatrice,
    électricien/électricienne, formateur/formatrice, gardien/gardienne, graphiste/graphiste, infirmier/infirmière,
    informaticien/informaticienne, ingénieur/ingénieure, juriste/juriste, livreur/livreuse, mécanicien/mécanicienne,
    opticien/opticienne, secrétaire/secrétaire, technicien/technicienne, traducteur/traductrice, vendeur/vendeuse""")
RELATIONS = _pairs("ami/amie, collègue/collègue, cousin/cousine, frère/sœur, voisin/voisine")  # after "sa" or "son"
CHARACTERS = _pairs("""attentif/attentive, bavard/bavarde, courageux/courageuse, curieux/curieuse, discret/discrète,
    doux/douce, franc/franche, généreux/généreuse, gentil/gentille, joyeux/joyeuse, naïf/naïve, patient/patiente,
    ponctuel/ponctuelle, rêveur/rêveuse, sérieux/sérieuse, têtu/têtue, timide/timide, travailleur/travailleuse""")
JOB_PAIR = {job: pair for pair in JOBS for job in pair}

SPORTS = _list("""le aviron, la escalade, la escrime, le football, le golf, la gymnastique, le handball, le hockey,
    le judo, la natation, le rugby, le ski, le tennis, la voile, le volley""")
INSTRUMENTS = _list("""le accordéon, la clarinette, la flûte, la guitare, la harpe, le harmonica, le hautbois, le orgue,
    le piano, le saxophone, le tambour, le violon""")
DISHES = _list("""la blanquette, la bouillabaisse, le cassoulet, la choucroute, le couscous, les crêpes, les endives,
    la fondue, le gratin, le homard, les huîtres, la omelette, la ratatouille, la soupe, le steak""")

# --- Towns, firms, films ----------------------------------------------------------------------------------

# Feminine regions have no article ("en Bretagne", "de Bretagne"), the others have one ("dans le").
REGIONS = {
    "Auvergne-Rhône-Alpes": ("Annecy", "Grenoble", "Lyon", "Valence"),
    "Bourgogne-Franche-Comté": ("Auxerre", "Besançon", "Dijon"),
    "Bretagne": ("Brest", "Quimper", "Rennes"),
    "le Centre-Val de Loire": ("Blois", "Orléans", "Tours"),
    "le Grand Est": ("Épinal", "Haguenau", "Metz", "Strasbourg"),
    "les Hauts-de-France": ("Amiens", "Arras", "Lille"),
    "Île-de-France": ("Étampes", "Paris", "Versailles"),
    "Normandie": ("Caen", "Évreux", "Le Havre", "Rouen"),
    "Nouvelle-Aquitaine": ("Angoulême", "Bordeaux", "La Rochelle", "Limoges"),
    "Occitanie": ("Albi", "Nîmes", "Toulouse"),
    "les Pays de la Loire": ("Angers", "Le Mans", "Les Sables-d'Olonne", "Nantes"),
    "Provence-Alpes-Côte d'Azur": ("Arles", "Avignon", "Hyères", "Marseille"),
}
FIRMS = _list("""Altéo, Boréal, Cobalia, Delmas et Fils, Domotis, Écoval, Ferrand, Garonne Express, Hydralis, Isatis,
    Karbone, Lumina, Maison Lambert, Nordimer, Novatis, Orélia, Pixelor, Royer Frères, Solvia, Transalpa, Ubiqua,
    Verdelis""")
SECTORS = _list("""la alimentation, les assurances, le bâtiment, la chimie, la électronique, la énergie, la édition,
    la hôtellerie, le jouet, le meuble, la mode, la santé, le textile, le tourisme, les transports""")
FILMS = _list("""Adieu au phare, Après la pluie, Château de sable, Demain peut-être, Deux sœurs à Lyon, Été sans fin,
    Hiver à Brest, Hors saison, Île perdue, Jardin secret, Lettres à Hélène, Lumière du nord, Mille silences,
    Minuit passé, Nuit blanche, Orages d'été, Poussière d'or, Quai numéro sept, Retour à Nantes, Rivages,
    Sept jours en mer, Trois hivers, Ultime escale, Voyage de nuit""")
GENRES = _list("""une comédie, un conte, un drame, un film d'aventures, une histoire d'amour, un polar, une satire,
    un western""")

# --- Opinions on films ------------------------------------------------------------------------------------

# (noun with its article, feminine, plural)
ASPECTS = (
    *((noun, False, False) for noun in _list("le début, le montage, le scénario")),
    *((noun, True, False) for noun in _list("la fin, la histoire, la intrigue, la mise en scène, la musique")),
    *((noun, False, True) for noun in _list("les costumes, les décors, les dialogues")),
    *((noun, True, True) for noun in _list("les images")),
)
# Masculine/feminine; reviews.plural makes the plural.
GOOD = _pairs("""admirable/admirable, brillant/brillante, convaincant/convaincante, excellent/excellente,
    génial/géniale, magnifique/magnifique, original/originale, remarquable/remarquable, réussi/réussie,
    soigné/soignée""")
BAD = _pairs("""affreux/affreuse, bâclé/bâclée, décevant/décevante, ennuyeux/ennuyeuse, fade/fade, maladroit/maladroite,
    quelconque/quelconque, médiocre/médiocre, pénible/pénible, raté/ratée""")
# Verdicts of the reviewer: (negative, positive); {e} is the feminine ending that agrees with the reviewer.
VERDICTS = _pairs("""je ne le recommande pas/je le recommande,
    je le déconseille/je ne le déconseille à personne,
    je regrette ma soirée/je ne regrette pas ma soirée,
    je regrette de être venu{e}/je ne regrette pas de être venu{e},
    je suis déçu{e}/je ne suis pas déçu{e},
    je ne suis pas conquis{e}/je suis conquis{e},
    je me suis ennuyé{e}/je ne me suis pas ennuyé{e},
    je n'ai pas été ému{e}/j'ai été ému{e},
    c'est une déception/ce n'est pas une déception,
    ce n'est pas une réussite/c'est une réussite,
    je n'irai pas le revoir/j'irai le revoir,
    c'est un film à éviter/c'est un film à voir,
    ce film n'est pas bon/ce film n'est pas mauvais""")

# --- Dates and weather ------------------------------------------------------------------------------------

YEARS = [str(year) for year in range(1960, 2020)]
DAYS = ("lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche")
SEASONS = ("au printemps", "en été", "en automne", "en hiver")
# Today/that day.
WEATHER = _pairs("""il pleut/il pleuvait, il neige/il neigeait, il gèle/il gelait, il fait froid/il faisait froid,
    il fait doux/il faisait doux, le soleil brille/le soleil brillait, le vent souffle/le vent soufflait,
    le orage gronde/le orage grondait, le ciel est gris/le ciel était gris""")

# --- Facts ------------------------------------------------------------------------------------------------

PERSON_FACTS = {
    "town": _fact("""vit <à {v}> | habite <à {v}> | réside <à {v}>
                     ne vit pas à {v} | ne habite pas à {v}
                     où vit {p} ? | où habite {p} ?"""),
    "birthplace": _fact("""est né{e} <à {v}> | a vu le jour <à {v}>
                           ne est pas né{e} à {v} | ne a pas vu le jour à {v}
                           où est né{e} {p} ? | où {p} a-t-{il} vu le jour ?"""),
    "job": _fact("""travaille comme <{v}> | est <{v}> | exerce le métier de <{v}>
                    ne est pas {v} | ne exerce pas le métier de {v}
                    quel est le métier de {p} ? | que fait {p} dans la vie ?"""),
    "firm": _fact("""travaille chez <{v}> | est employé{e} par <{v}> | est salarié{e} de <{v}>
                     ne travaille pas chez {v} | ne est pas employé{e} par {v}
                     chez qui travaille {p} ? | dans quelle entreprise travaille {p} ?"""),
    "age": _fact("""a <{v}> | est âgé{e} de <{v}>
                    ne a pas {v} | ne est pas âgé{e} de {v}
                    quel âge a {p} ? | quel est le âge de {p} ?"""),
    "sport": _fact("""ne pratique que <{v}> | a pour seul sport <{v}>
                      ne pratique pas {v} | ne a pas {v} pour sport
                      quel sport pratique {p} ? | quel est le seul sport de {p} ?"""),
    "instrument": _fact("""ne joue que <de {v}> | joue uniquement <de {v}>
                           ne joue pas de {v} | ne sait pas jouer de {v}
                           de quel instrument joue {p} ? | de quel instrument {p} joue-t-{il} ?"""),
    "dish": _fact("""a pour plat préféré <{v}> | préfère <{v}> à tous les autres plats
                     ne a pas {v} pour plat préféré | ne place pas {v} avant tous les autres plats
                     quel est le plat préféré de {p} ? | quel plat préfère {p} ?"""),
    "film": _fact("""a pour film préféré <{v}> | préfère <{v}> à tous les autres films
                     ne a pas {v} pour film préféré | ne place pas {v} avant tous les autres films
                     quel est le film préféré de {p} ? | quel film préfère {p} ?"""),
}
# Entailed by living in a town: {v} is "en Bretagne", "dans le Grand Est", …
REGION_FACT = _fact("""vit {v} | habite {v}
                       ne vit pas {v} | ne habite pas {v}
                       dans quelle région vit {p} ?""")
FIRM_FACTS = {
    "town": _fact("""a son siège <à {v}> | est installé{e} <à {v}>
                     ne a pas son siège à {v}
                     où se trouve le siège de {p} ? | où est installé{e} {p} ?"""),
    "sector": _fact("""travaille dans <{v}> | est spécialisé{e} dans <{v}>
                       ne travaille pas dans {v}
                       dans quel secteur travaille {p} ? | quel est le secteur de {p} ?"""),
    "year": _fact("""a été fondé{e} en <{v}> | existe depuis <{v}>
                     ne a pas été fondé{e} en {v}
                     en quelle année {p} a-t-{il} été fondé{e} ? | depuis quelle année existe {p} ?"""),
    "boss": _fact("""est dirigé{e} par <{v}> | a <{v}> à sa tête
                     ne est pas dirigé{e} par {v}
                     qui dirige {p} ? | qui est à la tête de {p} ?"""),
    "staff": _fact("""emploie <{v}> personnes | compte <{v}> salariés
                      ne emploie pas {v} personnes
                      combien de personnes emploie {p} ? | combien de salariés compte {p} ?"""),
}
FILM_FACTS = {
    "director": _fact("""est signé{e} <{v}> | a été réalisé{e} par <{v}>
                         ne est pas signé{e} {v}
                         qui a réalisé {p} ? | de qui est le film {p} ?"""),
    "year": _fact("""est sorti{e} en <{v}> | date de <{v}>
                     ne est pas sorti{e} en {v}
                     en quelle année est sorti{e} {p} ? | de quelle année date {p} ?"""),
    "genre": _fact("""se présente comme <{v}> | a été conçu{e} comme <{v}>
                      ne se présente pas comme {v}
                      quel genre de film est {p} ? | à quel genre appartient {p} ?"""),
    "lead": _fact("""a pour vedette <{v}> | a <{v}> dans le rôle principal
                     ne a pas pour vedette {v}
                     qui est la vedette de {p} ? | qui tient le rôle principal de {p} ?"""),
    "town": _fact("""se passe <à {v}> | se déroule <à {v}>
                     ne se passe pas à {v}
                     où se passe {p} ? | où se passe la histoire de {p} ?"""),
}
