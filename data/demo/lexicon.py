"""The vocabulary of the demo world, and templates of the sentences that state its facts.

Articles and prepositions are written in full ("la escrime", "le hautbois", "de {v}", "que {s}"): `spelling.spell`
makes every elision and contraction.

Template fields: {s} subject, {v} value of the fact, {p} full name of the entity, {il} its pronoun, {e} its feminine
ending. <...> marks the answer to the question about the fact. Every statement begins with "{s} ", so that two can
share a subject.
"""

from typing import NamedTuple


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


def _pairs(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(pair.split("/")) for pair in _list(text))


# --- People -----------------------------------------------------------------------------------------------

WOMEN = _list(
    "Agathe, Alice, Amina, Anne, Béatrice, Camille, Chloé, Clara, Denise, Élise, Emma, Fanny, Hélène, Inès, Irène, "
    "Jeanne, Julie, Karine, Léa, Louise, Lucie, Manon, Margot, Nadia, Nora, Odile, Pauline, Rose, Sophie, Zoé"
)
MEN = _list(
    "Adrien, Alain, Antoine, Arthur, Bruno, Cédric, Damien, Denis, Émile, Éric, Fabien, Gilles, Hugo, Ismaël, Jules, "
    "Karim, Louis, Luc, Marc, Mathieu, Nicolas, Olivier, Paul, Pierre, Quentin, Rachid, Samuel, Théo, Victor, Yves"
)
FAMILIES = _list(
    "Adam, Aubert, Barbier, Blanchard, Caron, Colin, Dumas, Dupuis, Étienne, Fabre, Faure, Garnier, Gauthier, Guérin, "
    "Hamon, Imbert, Joly, Lacroix, Laurent, Leclerc, Lemoine, Mercier, Meunier, Moreau, Noël, Perrin, Picard, Renard, "
    "Rey, Rivière, Robin, Roussel, Roy, Simon, Tessier, Vidal, Weber"
)
# Directors, actors and heads of firms have other family names, so that every full name is one person.
KNOWN_FAMILIES = _list(
    "Abadie, Arnaud, Bailly, Besson, Blondel, Bonnet, Bouvier, Carpentier, Chevalier, Cordier, Daniel, Delmas, "
    "Évrard, Fontaine, Gaillard, Gilbert, Guillot, Hubert, Jacquet, Keller, Klein, Lambert, Lebrun, Maillard, "
    "Marchand, Michaud, Ollivier, Pasquier, Poirier, Prévost, Rolland, Royer, Sabatier, Thibault, Vasseur, Verdier, "
    "Vincent, Wagner"
)

JOBS = _pairs(  # masculine/feminine
    "acheteur/acheteuse, architecte/architecte, assistant/assistante, avocat/avocate, caissier/caissière, "
    "concepteur/conceptrice, chimiste/chimiste, comptable/comptable, cuisinier/cuisinière, dessinateur/dessinatrice, "
    "électricien/électricienne, formateur/formatrice, gardien/gardienne, graphiste/graphiste, infirmier/infirmière, "
    "informaticien/informaticienne, ingénieur/ingénieure, juriste/juriste, livreur/livreuse, mécanicien/mécanicienne, "
    "opticien/opticienne, secrétaire/secrétaire, technicien/technicienne, traducteur/traductrice, vendeur/vendeuse"
)
RELATIONS = _pairs(  # masculine/feminine, after "sa" or "son"
    "ami/amie, collègue/collègue, cousin/cousine, frère/sœur, voisin/voisine"
)
CHARACTERS = _pairs(  # masculine/feminine
    "attentif/attentive, bavard/bavarde, courageux/courageuse, curieux/curieuse, discret/discrète, doux/douce, "
    "franc/franche, généreux/généreuse, gentil/gentille, joyeux/joyeuse, naïf/naïve, patient/patiente, "
    "ponctuel/ponctuelle, rêveur/rêveuse, sérieux/sérieuse, têtu/têtue, timide/timide, travailleur/travailleuse"
)

SPORTS = _list(
    "le aviron, la escalade, la escrime, le football, le golf, la gymnastique, le handball, le hockey, le judo, "
    "la natation, le rugby, le ski, le tennis, la voile, le volley"
)
INSTRUMENTS = _list(
    "le accordéon, la clarinette, la flûte, la guitare, la harpe, le harmonica, le hautbois, le orgue, le piano, "
    "le saxophone, le tambour, le violon"
)
DISHES = _list(
    "la blanquette, la bouillabaisse, le cassoulet, la choucroute, le couscous, les crêpes, les endives, la fondue, "
    "le gratin, le homard, les huîtres, la omelette, la ratatouille, la soupe, le steak"
)

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
FIRMS = _list(
    "Altéo, Boréal, Cobalia, Delmas et Fils, Domotis, Écoval, Ferrand, Garonne Express, Hydralis, Isatis, Karbone, "
    "Lumina, Maison Lambert, Nordimer, Novatis, Orélia, Pixelor, Royer Frères, Solvia, Transalpa, Ubiqua, Verdelis"
)
SECTORS = _list(
    "la alimentation, les assurances, le bâtiment, la chimie, la électronique, la énergie, la édition, la hôtellerie, "
    "le jouet, le meuble, la mode, la santé, le textile, le tourisme, les transports"
)
FILMS = _list(
    "Adieu au phare, Après la pluie, Château de sable, Demain peut-être, Deux sœurs à Lyon, Été sans fin, "
    "Hiver à Brest, Hors saison, Île perdue, Jardin secret, Lettres à Hélène, Lumière du nord, Mille silences, "
    "Minuit passé, Nuit blanche, Orages d'été, Poussière d'or, Quai numéro sept, Retour à Nantes, Rivages, "
    "Sept jours en mer, Trois hivers, Ultime escale, Voyage de nuit"
)
GENRES = _list(
    "une comédie, un conte, un drame, un film d'aventures, une histoire d'amour, un polar, une satire, un western"
)

# --- Opinions on films ------------------------------------------------------------------------------------

# (noun with its article, feminine, plural)
ASPECTS = (
    *((noun, False, False) for noun in _list("le début, le montage, le scénario")),
    *((noun, True, False) for noun in _list("la fin, la histoire, la intrigue, la mise en scène, la musique")),
    *((noun, False, True) for noun in _list("les costumes, les décors, les dialogues")),
    *((noun, True, True) for noun in _list("les images")),
)
# masculine/feminine; reviews.plural makes the plural.
GOOD = _pairs(
    "admirable/admirable, brillant/brillante, convaincant/convaincante, excellent/excellente, génial/géniale, "
    "magnifique/magnifique, original/originale, remarquable/remarquable, réussi/réussie, soigné/soignée"
)
BAD = _pairs(
    "affreux/affreuse, bâclé/bâclée, décevant/décevante, ennuyeux/ennuyeuse, fade/fade, maladroit/maladroite, "
    "quelconque/quelconque, médiocre/médiocre, pénible/pénible, raté/ratée"
)
# Verdicts of the reviewer: (negative, positive); {e} is the feminine ending that agrees with the reviewer.
VERDICTS = (
    ("je ne le recommande pas", "je le recommande"),
    ("je le déconseille", "je ne le déconseille à personne"),
    ("je regrette ma soirée", "je ne regrette pas ma soirée"),
    ("je regrette de être venu{e}", "je ne regrette pas de être venu{e}"),
    ("je suis déçu{e}", "je ne suis pas déçu{e}"),
    ("je ne suis pas conquis{e}", "je suis conquis{e}"),
    ("je me suis ennuyé{e}", "je ne me suis pas ennuyé{e}"),
    ("je n'ai pas été ému{e}", "j'ai été ému{e}"),
    ("c'est une déception", "ce n'est pas une déception"),
    ("ce n'est pas une réussite", "c'est une réussite"),
    ("je n'irai pas le revoir", "j'irai le revoir"),
    ("c'est un film à éviter", "c'est un film à voir"),
    ("ce film n'est pas bon", "ce film n'est pas mauvais"),
)

# --- Days and weather -------------------------------------------------------------------------------------

DAYS = ("lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche")
SEASONS = ("au printemps", "en été", "en automne", "en hiver")
WEATHER = _pairs(  # today/that day
    "il pleut/il pleuvait, il neige/il neigeait, il gèle/il gelait, il fait froid/il faisait froid, "
    "il fait doux/il faisait doux, le soleil brille/le soleil brillait, le vent souffle/le vent soufflait, "
    "le orage gronde/le orage grondait, le ciel est gris/le ciel était gris"
)

# --- Facts ------------------------------------------------------------------------------------------------


class Fact(NamedTuple):
    """Templates that state, deny and ask for a fact. Two different values of a fact contradict each other."""

    says: tuple[str, ...]
    denies: tuple[str, ...]
    asks: tuple[str, ...]


PERSON_FACTS = {
    "town": Fact(
        ("{s} vit <à {v}>", "{s} habite <à {v}>", "{s} réside <à {v}>"),
        ("{s} ne vit pas à {v}", "{s} ne habite pas à {v}"),
        ("où vit {p} ?", "où habite {p} ?"),
    ),
    "birthplace": Fact(
        ("{s} est né{e} <à {v}>", "{s} a vu le jour <à {v}>"),
        ("{s} ne est pas né{e} à {v}", "{s} ne a pas vu le jour à {v}"),
        ("où est né{e} {p} ?", "où {p} a-t-{il} vu le jour ?"),
    ),
    "job": Fact(
        ("{s} travaille comme <{v}>", "{s} est <{v}>", "{s} exerce le métier de <{v}>"),
        ("{s} ne est pas {v}", "{s} ne exerce pas le métier de {v}"),
        ("quel est le métier de {p} ?", "que fait {p} dans la vie ?"),
    ),
    "firm": Fact(
        ("{s} travaille chez <{v}>", "{s} est employé{e} par <{v}>", "{s} est salarié{e} de <{v}>"),
        ("{s} ne travaille pas chez {v}", "{s} ne est pas employé{e} par {v}"),
        ("chez qui travaille {p} ?", "dans quelle entreprise travaille {p} ?"),
    ),
    "age": Fact(
        ("{s} a <{v}>", "{s} est âgé{e} de <{v}>"),
        ("{s} ne a pas {v}", "{s} ne est pas âgé{e} de {v}"),
        ("quel âge a {p} ?", "quel est le âge de {p} ?"),
    ),
    "sport": Fact(
        ("{s} ne pratique que <{v}>", "{s} a pour seul sport <{v}>"),
        ("{s} ne pratique pas {v}", "{s} ne a pas {v} pour sport"),
        ("quel sport pratique {p} ?", "quel est le seul sport de {p} ?"),
    ),
    "instrument": Fact(
        ("{s} ne joue que <de {v}>", "{s} joue uniquement <de {v}>"),
        ("{s} ne joue pas de {v}", "{s} ne sait pas jouer de {v}"),
        ("de quel instrument joue {p} ?", "de quel instrument {p} joue-t-{il} ?"),
    ),
    "dish": Fact(
        ("{s} a pour plat préféré <{v}>", "{s} préfère <{v}> à tous les autres plats"),
        ("{s} ne a pas {v} pour plat préféré", "{s} ne place pas {v} avant tous les autres plats"),
        ("quel est le plat préféré de {p} ?", "quel plat préfère {p} ?"),
    ),
    "film": Fact(
        ("{s} a pour film préféré <{v}>", "{s} préfère <{v}> à tous les autres films"),
        ("{s} ne a pas {v} pour film préféré", "{s} ne place pas {v} avant tous les autres films"),
        ("quel est le film préféré de {p} ?", "quel film préfère {p} ?"),
    ),
}
# Entailed by living in a town: {v} is "en Bretagne", "dans le Grand Est", …
REGION_FACT = Fact(
    ("{s} vit {v}", "{s} habite {v}"),
    ("{s} ne vit pas {v}", "{s} ne habite pas {v}"),
    ("dans quelle région vit {p} ?",),
)
FIRM_FACTS = {
    "town": Fact(
        ("{s} a son siège <à {v}>", "{s} est installé{e} <à {v}>"),
        ("{s} ne a pas son siège à {v}",),
        ("où se trouve le siège de {p} ?", "où est installé{e} {p} ?"),
    ),
    "sector": Fact(
        ("{s} travaille dans <{v}>", "{s} est spécialisé{e} dans <{v}>"),
        ("{s} ne travaille pas dans {v}",),
        ("dans quel secteur travaille {p} ?", "quel est le secteur de {p} ?"),
    ),
    "year": Fact(
        ("{s} a été fondé{e} en <{v}>", "{s} existe depuis <{v}>"),
        ("{s} ne a pas été fondé{e} en {v}",),
        ("en quelle année {p} a-t-{il} été fondé{e} ?", "depuis quelle année existe {p} ?"),
    ),
    "boss": Fact(
        ("{s} est dirigé{e} par <{v}>", "{s} a <{v}> à sa tête"),
        ("{s} ne est pas dirigé{e} par {v}",),
        ("qui dirige {p} ?", "qui est à la tête de {p} ?"),
    ),
    "staff": Fact(
        ("{s} emploie <{v}> personnes", "{s} compte <{v}> salariés"),
        ("{s} ne emploie pas {v} personnes",),
        ("combien de personnes emploie {p} ?", "combien de salariés compte {p} ?"),
    ),
}
FILM_FACTS = {
    "director": Fact(
        ("{s} est signé{e} <{v}>", "{s} a été réalisé{e} par <{v}>"),
        ("{s} ne est pas signé{e} {v}",),
        ("qui a réalisé {p} ?", "de qui est le film {p} ?"),
    ),
    "year": Fact(
        ("{s} est sorti{e} en <{v}>", "{s} date de <{v}>"),
        ("{s} ne est pas sorti{e} en {v}",),
        ("en quelle année est sorti{e} {p} ?", "de quelle année date {p} ?"),
    ),
    "genre": Fact(
        ("{s} se présente comme <{v}>", "{s} a été conçu{e} comme <{v}>"),
        ("{s} ne se présente pas comme {v}",),
        ("quel genre de film est {p} ?", "à quel genre appartient {p} ?"),
    ),
    "lead": Fact(
        ("{s} a pour vedette <{v}>", "{s} a <{v}> dans le rôle principal"),
        ("{s} ne a pas pour vedette {v}",),
        ("qui est la vedette de {p} ?", "qui tient le rôle principal de {p} ?"),
    ),
    "town": Fact(
        ("{s} se passe <à {v}>", "{s} se déroule <à {v}>"),
        ("{s} ne se passe pas à {v}",),
        ("où se passe {p} ?", "où se passe la histoire de {p} ?"),
    ),
}
