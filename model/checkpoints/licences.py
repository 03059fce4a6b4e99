"""Licences in model cards: the names that the hub takes, and what a card says of a model's licence."""

from .markdown import code

LICENCES = {"almanach/camembert-base": "mit", "cmarkea/distilcamembert-base": "mit"}  # as their pages on the hub say
LISTED = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0
    cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql
    ofl-1.1 ncsa unlicense zlib pddl lgpl-lr unknown other
"""  # https://huggingface.co/docs/hub/repositories-licenses, without those of other families of models
LICENCE_NAMES = frozenset(LISTED.split())


def licence_lines(licence: str | None, repository: str | None) -> list[str]:
    """licence: of the model, None if it is not known. repository: the model on the hub that it comes from, or None."""
    unknown = "Not stated: it depends on the licences of the teacher and of the data."
    lines = [f"{code(licence)}." if licence else unknown]
    if repository in LICENCES:
        lines.append(f"The licence of {code(repository)} is {code(LICENCES[repository])}.")
    return lines
