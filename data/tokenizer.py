"""Text to CamemBERT's token ids and back: SentencePiece, renumbered.

CamemBERT's vocabulary is fairseq's four special ids, one unused row, SentencePiece's pieces, and <mask> last:

    0 <s>NOTUSED   1 <pad>   2 </s>NOTUSED   3 <unk>   4 <unk>NOTUSED   5 <s>   6 </s>   7 … ordinary …   last <mask>

SentencePiece itself numbers <unk> 0, <s> 1, </s> 2, and its ordinary pieces from 3: one adds 4, but for <unk>.
How many pieces there are is read from the file (camembert-base has 32,000, hence 32,005 ids).

SentencePiece gives the normalisation, the pieces and their log-probabilities; the best way to cut a word into
pieces is found here. SentencePiece's own search adds in float32 over the whole line, so that where two cuts
are equally good ("AA A" and "A AA") the one taken depends on everything to its left: one line of 10,000 in
real text. Hugging Face searches word by word in float64, and so do we; a test holds every id equal to theirs.

No rule of the normalisation has a space in it, no piece goes beyond a word: what stands between two spaces has its
ids whatever stands around it. So they are found once a word and kept, and real text is mostly words seen before.
"""

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import sentencepiece

from .cli import DataError

FILE_NAME = "sentencepiece.bpe.model"  # how the hub calls it
SHIFT = 4
UNKNOWN_PENALTY = 10.0  # an unknown character costs this much more than the rarest piece
COMBINING = 0x300  # the first of Unicode's characters that combine with the one before
CACHED_WORDS = 1 << 20  # 490,000 words, with their parts, were seen to take 133 MB
CACHED_LENGTH = 100  # characters: what is longer is no word, and will not be seen again


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
        self.mask_id = len(self._sentencepiece) + SHIFT
        self.ordinary_ids = range(self.eos_id + 1, self.mask_id)
        self._special = {
            "<s>": self.bos_id,
            "</s>": self.eos_id,
            "<unk>": self.unk_id,
            "<pad>": self.pad_id,
            "<mask>": self.mask_id,
        }
        self.typecode = "H" if len(self) <= 1 << 16 else "I"  # of array.array, for encode_words()
        self._words = Words(self._sentencepiece, self._special, self.typecode)

    def __len__(self) -> int:
        """|W|, every id that the model must have a row for."""
        return self.mask_id + 1

    def sha256(self) -> str:
        """Of the file: what tells whether two corpora were prepared with the same."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def encode(self, text: str, pair: str | None = None) -> list[int]:
        """`<s> text </s>`, or with a pair `<s> text </s></s> pair </s>`."""
        if pair is None:
            (ids,) = self.encode_plain([text])
            return [self.bos_id, *ids, self.eos_id]
        first, second = self.encode_plain([text, pair])
        return [self.bos_id, *first, self.eos_id, self.eos_id, *second, self.eos_id]

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's ids, without `<s>` and `</s>` around it."""
        return [array(self.typecode, self.encode_words(text)).tolist() for text in texts]

    def encode_words(self, text: str) -> bytes:
        """The same of one text, as the bytes of an array of `typecode`: much faster where there is much text."""
        return b"".join(map(self._words.__getitem__, text.split(" ")))

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The same ids, and of which characters each is made: text[start:end], without the space before it.

        Where a character became several pieces, each has it; a lone ▁ has its word's first character.
        """
        ids, spans, start = [], [], 0
        for place, part in enumerate(self._words.special_pattern.split(whole(text))):
            if place % 2:
                ids.append(self._special[part])
                spans.append((start, start + len(part)))
            elif part:
                normalized, origins = self._sentencepiece.normalize(part, with_offsets=True)
                end = 0
                for word in re.findall("▁[^▁]*", normalized):
                    cut = self._words.parts.cut(word)
                    ids += cut
                    for length in self._lengths(cut, word):
                        begin, end = end, end + length
                        first, after = origins[begin + (normalized[begin] == "▁")], end
                        while origins[after] <= first:
                            after += 1
                        spans.append((start + first, start + origins[after]))
            start += len(part)
        return ids, spans

    def _lengths(self, ids: Sequence[int], word: str) -> Iterator[int]:
        """How many characters of ▁word each of its ids stands for: <unk> for what is left between the others."""
        place = 0
        for i, following in zip(ids, [*ids[1:], None]):
            if i != self.unk_id:
                length = len(self._piece(i))
            elif following is None:
                length = len(word) - place
            else:
                length = word.index(self._piece(following), place + 1) - place
            place += length
            yield length

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
    """What stands between two spaces -> its token ids as bytes, found once and kept.

    `<mask>`, `<s>`, `</s>`, `<pad>` and `<unk>` written out are the special tokens, as Hugging Face has it: what
    stands between them is tokenized as a text of its own, so that a word after `<mask>` begins with ▁ again.
    """

    def __init__(self, model: sentencepiece.SentencePieceProcessor, special: dict[str, int], typecode: str):
        super().__init__()
        self._normalize, self._typecode = model.normalize, typecode
        self._special, self.special_pattern = special, re.compile(f"({'|'.join(map(re.escape, special))})")
        # Most words need no normalisation: no rule changes these, alone or side by side (nothing here combines).
        latin = map(chr, range(ord("!"), COMBINING))
        self._unchanged = {each for each in latin if each != "<" and model.normalize(f"a{each}a") == f"▁a{each}a"}
        self.parts = Parts(model, special["<unk>"])

    def __missing__(self, word: str) -> bytes:
        word = whole(word)
        if self._unchanged.issuperset(word) and word:
            ids = self.parts.cut("▁" + word)
        else:
            ids = []
            for place, text in enumerate(self.special_pattern.split(word)):
                if place % 2:
                    ids.append(self._special[text])
                    continue
                for normalized in self._normalize(text).split("▁")[1:]:
                    ids += self.parts.cut("▁" + normalized)
        result = array(self._typecode, ids).tobytes()
        keep(self, word, result)
        return result


class Parts(dict):
    """What stands between two borders that every cut of a word has -> the ids of its pieces, found once and kept."""

    def __init__(self, model: sentencepiece.SentencePieceProcessor, unk_id: int):
        super().__init__()
        self._unk_id = unk_id
        self._neighbours = set()  # pairs of characters that stand side by side in a piece
        self._pieces = {}  # a trie: character -> (what may follow, id, log-probability of the piece that ends here)
        self._longest, rarest = 1, 0.0
        for i in range(len(model)):
            if model.is_control(i) or model.is_unknown(i):
                continue
            piece, log_probability = model.id_to_piece(i), model.get_score(i)
            self._neighbours.update(pairwise(piece))
            self._longest, rarest = max(self._longest, len(piece)), min(rarest, log_probability)
            node = self._pieces
            for character in piece[:-1]:
                node = node.setdefault(character, ({}, None, 0.0))[0]
            following = node[piece[-1]][0] if piece[-1] in node else {}
            node[piece[-1]] = following, i + SHIFT, log_probability
        self._unknown_score = rarest - UNKNOWN_PENALTY

    def cut(self, word: str) -> list[int]:
        """The best cut of ▁word into pieces, part by part.

        Between two characters that stand side by side in no piece, every cut has a border. So the best cut of the
        word is that of the parts between such borders, exactly: sums of a few float32 numbers in float64 are exact.
        Characters that no piece covers are <unk>, neighbouring ones together one <unk>.
        """
        neighbours, ids, start = self._neighbours, [], 0
        for end, pair in enumerate(pairwise(word), 1):
            if pair not in neighbours:
                ids += self[word[start:end]]
                start = end
        ids += self[word[start:]]
        if self._unk_id in ids:
            ids = [i for place, i in enumerate(ids) if i != self._unk_id or ids[place - 1 : place] != [i]]
        return ids

    def __missing__(self, part: str) -> list[int]:
        """Viterbi: the pieces whose log-probabilities add up to most; of equals, the first found.

        A character that is no piece itself can be taken as <unk>.
        """
        pieces, longest, length = self._pieces, self._longest, len(part)
        score = [0.0] + [float("-inf")] * length  # of the best cut of part[:end]
        origin, last = [0] * (length + 1), [0] * (length + 1)  # where its last piece begins, and its id
        for start in range(length):
            before, node, end = score[start], pieces, start
            for character in part[start : start + longest]:
                found = node.get(character)
                if found is None:
                    break
                end += 1
                node, i, log_probability = found
                if i is not None and before + log_probability > score[end]:
                    score[end], origin[end], last[end] = before + log_probability, start, i
            alone = pieces.get(part[start])
            if (alone is None or alone[1] is None) and before + self._unknown_score > score[start + 1]:
                score[start + 1], origin[start + 1], last[start + 1] = before + self._unknown_score, start, self._unk_id
        ids, end = [], length
        while end:
            ids.append(last[end])
            end = origin[end]
        ids.reverse()
        keep(self, part, ids)
        return ids


def whole(text: str) -> str:
    """With "?" for each half of a surrogate pair that stands alone (JSON's \\ud800), which is no character."""
    return text.encode(errors="replace").decode()


def keep(cache: dict, key: str, value) -> None:
    """In a cache of bounded size: a full one begins anew."""
    if len(key) <= CACHED_LENGTH:
        if len(cache) >= CACHED_WORDS:
            cache.clear()
        cache[key] = value
