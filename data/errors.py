"""What a person did wrong, in a sentence for that person. Commands print it and exit with status 2."""


class DataError(ValueError):
    """A text, a tokenizer or a data set cannot be used. The message says which, where, and what to do."""


class OptionError(ValueError):
    """An option makes no sense. The message names it and what it takes."""
