"""Text to CamemBERT's token ids and back: SentencePiece, renumbered.

CamemBERT's vocabulary is fairseq's four special ids, one unused row, SentencePiece's pieces, and <mask> last:

    0 <s>NOTUSED   1 <pad>   2 </s>NOTUSED   3 <unk>   4 <unk>NOTUSED   5 <s>   6 </s>   7 … ordinary …   last <mask>

SentencePiece itself numbers <unk> 0, <s> 1, </s> 2, and its ordinary pieces from 3: one adds 4, but for <unk>.
How many pieces there are is read from the file (camembert-base has 32,000, hence 32,005 ids).

SentencePiece gives the normalisation, the pieces and their log-probabilities; the best way to cut a word into
pieces is found here. SentencePiece's own search adds in float32 over the whole line, so that where two cuts
are equally good ("AA A" and "A AA") the one taken depends on everything to its left: one line of 10,000 in
real text. Hugging Face searches word by word in float64, and so do we; a test holds every id equal to theirs.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import sentencepiece

from .errors import DataError

FILE_NAME = "sentencepiece.bpe.model"  # how the hub calls it
SHIFT = 4
UNKNOWN_PENALTY = 10.0  # an unknown character costs this much more than the rarest piece
CACHED_WORDS = 1 << 20


class Tokenizer:
    """CamemBERT's tokenizer.

    path: a SentencePiece model, or a folder with a sentencepiece.bpe.model.
    Raises DataError for a file that is missing or is not such a model.
    """

    pad_id, unk_id, bos_id, eos_id = 1, 3, 5, 6

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.is_dir():
            self.path = self.path / FILE_NAME
        if not self.path.is_file():
            raise DataError(f"There is no tokenizer {self.path}. It is the file {FILE_NAME} of a CamemBERT.")
        try:
            self._sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=self.path.read_bytes())
        except OSError as error:
            raise DataError(f"The tokenizer {self.path} cannot be read: {error.strerror}.") from None
        except RuntimeError:
            raise DataError(
                f"{self.path} is not a SentencePiece model. The tokenizer is the file {FILE_NAME} of a CamemBERT."
            ) from None
        first = [self._sentencepiece.id_to_piece(i) for i in range(min(3, len(self._sentencepiece)))]
        if first != ["<unk>", "<s>", "</s>"] or len(self._sentencepiece) < 4:
            raise DataError(f"{self.path} is a SentencePiece model, but not numbered as CamemBERT's are: {first}.")
        check_segmentation(self._sentencepiece, self.path)
        self._words = Words(self._sentencepiece, self.unk_id)
        self.mask_id = len(self._sentencepiece) + SHIFT
        self.ordinary_ids = range(self.eos_id + 1, self.mask_id)
        self._special = {
            "<s>": self.bos_id,
            "</s>": self.eos_id,
            "<unk>": self.unk_id,
            "<pad>": self.pad_id,
            "<mask>": self.mask_id,
        }
        self._special_pattern = re.compile(f"({'|'.join(map(re.escape, self._special))})")

    def __len__(self) -> int:
        """|W|, every id that the model must have a row for."""
        return self.mask_id + 1

    def encode(self, text: str, pair: str | None = None) -> list[int]:
        """`<s> text </s>`, or with a pair `<s> text </s></s> pair </s>`."""
        if pair is None:
            (ids,) = self.encode_plain([text])
            return [self.bos_id, *ids, self.eos_id]
        first, second = self.encode_plain([text, pair])
        return [self.bos_id, *first, self.eos_id, self.eos_id, *second, self.eos_id]

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's ids, without `<s>` and `</s>` around it.

        `<mask>`, `<s>`, `</s>`, `<pad>` and `<unk>` written out in a text are the special tokens, as Hugging
        Face has it: the pieces between them are tokenized as texts of their own, so that the space before
        `<mask>` is swallowed and the word after it begins with ▁ again.
        """
        parts = [self._special_pattern.split(text) if "<" in text else [text] for text in texts]
        plain = [part for text in parts for part in text[::2]]  # split() puts the special ones at odd places
        normalized = iter(self._sentencepiece.normalize(plain))  # "▁each▁word▁like▁this"
        words = self._words.__getitem__
        result = []
        for text in parts:
            ids = []
            for place, part in enumerate(text):
                if place % 2:
                    ids.append(self._special[part])
                else:
                    ids.extend(chain.from_iterable(map(words, next(normalized).split("▁")[1:])))
            result.append(ids)
        return result

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """What each id stands for, with ▁ where a word begins.  Raises DataError for an id outside the vocabulary."""
        return [self._piece(int(i)) for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text again, up to SentencePiece's normalisation. `<s>`, `</s>` and `<pad>` leave no trace but a space."""
        text = ""
        for i, piece in zip(ids := list(ids), self.pieces(ids)):
            if i in (self.bos_id, self.eos_id, self.pad_id):
                text += "▁"
            elif i == self.mask_id:
                text += "▁<mask>"
            else:
                text += piece
        return re.sub("▁+", " ", text).strip()

    def _piece(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise DataError(f"There is no token {i}: the vocabulary has ids 0 to {len(self) - 1}.")
        if i == self.mask_id:
            return "<mask>"
        if i <= SHIFT:
            return ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED")[i]
        return self._sentencepiece.id_to_piece(i - SHIFT)


def tokenizer_beside(model_path: str | Path) -> Path | None:
    """The SentencePiece model in a model's folder, or in the folder of its file, if there is one."""
    folder = Path(model_path)
    candidate = (folder if folder.is_dir() else folder.parent) / FILE_NAME
    return candidate if candidate.is_file() else None


def check_segmentation(model: sentencepiece.SentencePieceProcessor, path: Path) -> None:
    """Raises DataError unless the model cuts text as CamemBERT's does: a unigram model, word by word, ▁ in front."""
    ordinary = range(3, len(model))
    why = None
    if model.normalize("a") != "▁a":
        why = "it puts no ▁ before a word"
    elif any("▁" in model.id_to_piece(i)[1:] for i in ordinary):
        why = "it has pieces that go beyond a word"
    elif any(model.is_byte(i) for i in ordinary):
        why = "it has pieces for single bytes"
    elif all(model.get_score(i).is_integer() for i in ordinary):  # the rank of a merge, not a log-probability
        why = "it is a BPE model (CamemBERT's is a unigram model, whatever its file is called)"
    if why:
        raise DataError(f"{path} is a SentencePiece model, but not of CamemBERT's kind: {why}.")


class Words(dict):
    """Word -> token ids, found once and kept: real text is mostly words seen before."""

    def __init__(self, sentencepiece_model: sentencepiece.SentencePieceProcessor, unk_id: int):
        super().__init__()
        self._unk_id = unk_id
        self._pieces = {}  # a trie: one dict a character, and under "" the (id, log-probability) of what ends there
        rarest = 0.0
        for i in range(len(sentencepiece_model)):
            if sentencepiece_model.is_control(i) or sentencepiece_model.is_unknown(i):
                continue
            node = self._pieces
            for character in sentencepiece_model.id_to_piece(i):
                node = node.setdefault(character, {})
            node[""] = (i + SHIFT, sentencepiece_model.get_score(i))
            rarest = min(rarest, node[""][1])
        self._unknown_score = rarest - UNKNOWN_PENALTY

    def __missing__(self, word: str) -> list[int]:
        """Viterbi: the cut of ▁word into pieces whose log-probabilities add up to most; of equals, the first found.

        Characters that no piece covers are <unk>, neighbouring ones together one <unk>.
        """
        text = "▁" + word
        length = len(text)
        score = [0.0] + [float("-inf")] * length  # of the best cut of text[:end], and its last piece's start and id
        origin, last = [0] * (length + 1), [0] * (length + 1)
        for start in range(length):
            before, node, covered = score[start], self._pieces, False
            for end in range(start + 1, length + 1):
                node = node.get(text[end - 1])
                if node is None:
                    break
                if "" in node:
                    i, log_probability = node[""]
                    covered = covered or end == start + 1
                    if before + log_probability > score[end]:
                        score[end], origin[end], last[end] = before + log_probability, start, i
            if not covered and before + self._unknown_score > score[start + 1]:
                score[start + 1], origin[start + 1], last[start + 1] = before + self._unknown_score, start, self._unk_id
        ids, end = [], length
        while end:
            if not (last[end] == self._unk_id and ids and ids[-1] == self._unk_id):
                ids.append(last[end])
            end = origin[end]
        ids.reverse()
        if len(self) >= CACHED_WORDS:
            self.clear()
        self[word] = ids
        return ids
