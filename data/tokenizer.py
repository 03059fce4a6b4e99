"""CamemBERT's tokenizer: SentencePiece pieces under fairseq's numbering. Text to token ids, and back.

The vocabulary is four special tokens of fairseq, one unused row, SentencePiece's pieces, and <mask> last:

    0 <s>NOTUSED   1 <pad>   2 </s>NOTUSED   3 <unk>   4 <unk>NOTUSED   5 <s>   6 </s>   7 … pieces …   last <mask>

SentencePiece itself numbers <unk> 0, <s> 1, </s> 2 and the other pieces from 3; the token id is 4 more, except for
<unk>. The number of pieces is read from the file (camembert-base: 32,000, hence 32,005 ids).

SentencePiece provides the normalisation, the pieces and their log-probabilities; the best segmentation of a word is
computed here. SentencePiece's own search adds log-probabilities in float32 over the whole line, so that its choice
between two equally good segmentations ("AA A" and "A AA") depends on the text before them; this affects one line in
10,000 of real text. Hugging Face searches word by word in float64, and so does this file: a test compares every id.

No normalisation rule contains a space, and no piece crosses one. So the ids of the characters between two spaces do
not depend on the context, and are computed once per word and cached.
"""

import hashlib
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy
import sentencepiece
from safetensors import SafetensorError, safe_open

from .cli import DataError
from .formats import LFS_START, lfs_pointer

FILE_NAME = "sentencepiece.bpe.model"  # its name on the Hugging Face hub, and as a tensor inside a model's file
DIGEST = "tokenizer_sha256"  # its hash, in the metadata of a model's file
MODEL_FILES = ("model.safetensors", "student.safetensors")  # in a folder, that may have a tokenizer inside
SHIFT = 4  # token id minus SentencePiece id, except for <unk>
UNKNOWN_PENALTY = 10.0  # the log-probability of an unknown character is this much below that of the rarest piece
COMBINING = 0x300  # the first combining character of Unicode
CACHE_SIZE = 1 << 20  # entries; 490,000 words and their parts take 133 MB
CACHED_LENGTH = 100  # characters; longer strings are not words and do not recur


class Tokenizer:
    """CamemBERT's tokenizer.

    path: a SentencePiece model; or a model's .safetensors file or folder, with the tokenizer inside or beside it.
    content: the SentencePiece model itself; path is then only its name in messages.
    Raises DataError if the file is missing or is not a model of CamemBERT's kind.
    """

    pad_id, unk_id, bos_id, eos_id = 1, 3, 5, 6

    def __init__(self, path: str | Path, content: bytes | None = None):
        self.path, self.content = (Path(path), content) if content is not None else read_tokenizer(Path(path))
        try:
            self._sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=self.content)
        except RuntimeError:
            if pointer := lfs_pointer(self.path, self.content):
                raise DataError(pointer) from None
            raise DataError(f"{self.path} is not a SentencePiece model. Give the {FILE_NAME} of a CamemBERT.") from None
        first = [self._sentencepiece.id_to_piece(i) for i in range(min(3, len(self._sentencepiece)))]
        if first != ["<unk>", "<s>", "</s>"] or len(self._sentencepiece) < 4:
            raise DataError(f"{self.path} is a SentencePiece model, but its ids, {first}…, are not CamemBERT's.")
        check_segmentation(self._sentencepiece, self.path)
        self.mask_id = len(self._sentencepiece) + SHIFT
        self.ordinary_ids = range(self.eos_id + 1, self.mask_id)
        special_ids = (self.bos_id, self.eos_id, self.unk_id, self.pad_id, self.mask_id)
        self._special = dict(zip(("<s>", "</s>", "<unk>", "<pad>", "<mask>"), special_ids))
        self.typecode = "H" if len(self) <= 1 << 16 else "I"  # array.array's code for uint16 or uint32
        self._words = WordCache(self._sentencepiece, self._special, self.typecode)

    def __len__(self) -> int:
        """|W|, the vocabulary size: the number of rows of the word embeddings."""
        return self.mask_id + 1

    def sha256(self) -> str:
        """Hash of the SentencePiece model, by which a prepared corpus identifies its tokenizer."""
        return hashlib.sha256(self.content).hexdigest()

    def encode(self, text: str, pair: str | None = None) -> list[int]:
        """-> ids of `<s> text </s>`, or with a pair `<s> text </s></s> pair </s>`."""
        if pair is None:
            (ids,) = self.encode_plain([text])
            return [self.bos_id, *ids, self.eos_id]
        first, second = self.encode_plain([text, pair])
        return [self.bos_id, *first, self.eos_id, self.eos_id, *second, self.eos_id]

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """-> the ids of each text, without `<s>` and `</s>`."""
        return [array(self.typecode, self.encode_words(text)).tolist() for text in texts]

    def encode_words(self, text: str) -> bytes:
        """The same for one text, as the bytes of an array of `typecode`: much faster for a large corpus."""
        return b"".join(map(self._words.__getitem__, text.split(" ")))

    def encode_spans(self, text: str, borders: Sequence[int] = ()) -> tuple[list[int], list[tuple[int, int]]]:
        """-> ids without `<s>` and `</s>`; offsets: token i is text[start:end], without the space before it.

        Pieces that normalisation made of one character share its offsets; a lone ▁ has the first character of its word.
        borders: ascending offsets in the text which no piece crosses; of the segmentations that remain, the best.
        """
        ids, spans, start = [], [], 0
        for index, part in enumerate(self._words.special_pattern.split(replace_surrogates(text))):
            if index % 2:  # split() alternates text and special tokens
                ids.append(self._special[part])
                spans.append((start, start + len(part)))
            elif part:
                normalized, origins = self._sentencepiece.normalize(part, with_offsets=True)
                inside = borders[bisect_right(borders, start) : bisect_left(borders, start + len(part))]
                cuts = {bisect_left(origins, border - start) for border in inside}
                cuts = {cut for cut in cuts if normalized[cut - 1 : cut] != "▁"}  # ▁ belongs to the word after it
                cuts |= {match.start() for match in re.finditer("▁", normalized)}
                for begin, after in pairwise(sorted({0, *cuts, len(normalized)})):
                    word = normalized[begin:after]
                    piece_ids = self._words.segmenter.segment(word)
                    ids += piece_ids
                    for length in self._piece_lengths(piece_ids, word):
                        end = begin + length
                        first, last = origins[begin + (normalized[begin] == "▁")], end
                        while origins[last] <= first:
                            last += 1
                        spans.append((start + first, start + origins[last]))
                        begin = end
            start += len(part)
        return ids, spans

    def _piece_lengths(self, ids: Sequence[int], word: str) -> Iterator[int]:
        """The number of characters of ▁word per id; an <unk> covers all characters up to the next piece."""
        start = 0
        for i, following in zip(ids, [*ids[1:], None]):
            if i != self.unk_id:
                length = len(self._piece(i))
            elif following is None:
                length = len(word) - start
            else:
                length = word.index(self._piece(following), start + 1) - start
            start += length
            yield length

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The string of each id, with ▁ where a word begins.  Raises DataError for an id outside the vocabulary."""
        return [self._piece(int(i)) for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text, as SentencePiece normalises it. `<s>`, `</s>` and `<pad>` become a space."""
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
            raise DataError(f"The token id {i} is outside the vocabulary, ids 0 to {len(self) - 1}.")
        if i == self.mask_id:
            return "<mask>"
        if i <= SHIFT:
            return ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED")[i]
        return self._sentencepiece.id_to_piece(i - SHIFT)


# ---- where a tokenizer is --------------------------------------------------------------------------------------


def read_tokenizer(path: Path) -> tuple[Path, bytes]:
    """-> the file that holds the tokenizer, its SentencePiece model.  Raises DataError if there is none."""
    try:
        found = own_tokenizer(path) if path.is_dir() or is_safetensors(path) else (path, path.read_bytes())
    except OSError as error:
        if not path.exists():
            raise DataError(f"There is no tokenizer {path}. Give the {FILE_NAME} of a CamemBERT.") from None
        raise DataError(f"The tokenizer {path} cannot be read: {error.strerror}.") from None
    if found is None:
        where = "in" if path.is_dir() else "inside or beside"
        raise DataError(f"There is no tokenizer {where} {path}. Give the {FILE_NAME} of a CamemBERT.")
    return found


def own_tokenizer(model_path: str | Path) -> tuple[Path, bytes] | None:
    """A model's tokenizer: inside its file, else beside it -> the file that holds it, its SentencePiece model.

    model_path: a file or a folder. None if there is none. Raises DataError if it is damaged, OSError.
    """
    path = Path(model_path)
    folder = path if path.is_dir() else path.parent
    for file in [path] if path.is_file() else [folder / name for name in MODEL_FILES]:
        if file.is_file() and (content := embedded_tokenizer(file)) is not None:
            return file, content
    beside = folder / FILE_NAME
    return (beside, beside.read_bytes()) if beside.is_file() else None


def embedded_tokenizer(path: Path) -> bytes | None:
    """The SentencePiece model inside a .safetensors file, None if there is none.

    Raises DataError for a wrong hash and for a Git LFS pointer, so that nobody looks for the tokenizer beside one.
    """
    with path.open("rb") as file:
        if pointer := lfs_pointer(path, file.read(len(LFS_START))):
            raise DataError(pointer)
    if not is_safetensors(path):
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            if FILE_NAME not in file.keys():  # noqa: SIM118 (no dict)
                return None
            tensor, digest = file.get_tensor(FILE_NAME), (file.metadata() or {}).get(DIGEST)
    except (SafetensorError, ValueError, RuntimeError, TypeError):  # whoever reads the model reports it
        return None
    content = tensor.tobytes()
    if tensor.dtype != numpy.uint8 or hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"{path} is damaged: the tokenizer inside does not match its hash. Copy the file again.")
    return content


def is_safetensors(path: Path) -> bool:
    """Whether a file starts like a .safetensors file, whatever its name: a length of eight bytes, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and not start.startswith(b"{")  # the second is a JSON file


def check_segmentation(model: sentencepiece.SentencePieceProcessor, path: Path) -> None:
    """Raises DataError unless the model is of CamemBERT's kind: unigram, ▁ before each word, no piece across words."""
    ordinary = range(3, len(model))
    reason = None
    if model.normalize("a") != "▁a":
        reason = "it puts no ▁ before a word"
    elif any("▁" in model.id_to_piece(i)[1:] for i in ordinary):
        reason = "it has pieces that span several words"
    elif any(model.is_byte(i) for i in ordinary):
        reason = "it has byte pieces"
    elif all(model.get_score(i).is_integer() for i in ordinary):  # ranks of merges, not log-probabilities
        reason = "it is a BPE model (CamemBERT's is a unigram model, despite its file name)"
    if reason:
        raise DataError(f"{path} is a SentencePiece model, but not of CamemBERT's kind: {reason}.")


class WordCache(dict):
    """Maps the characters between two spaces to their token ids, as bytes; computed on first use.

    As in Hugging Face, `<mask>`, `<s>`, `</s>`, `<pad>` and `<unk>` in a text are the special tokens, and the strings
    between them are tokenized separately: a word after `<mask>` begins with ▁.
    """

    def __init__(self, model: sentencepiece.SentencePieceProcessor, special: dict[str, int], typecode: str):
        super().__init__()
        self._normalize, self._typecode = model.normalize, typecode
        self._special, self.special_pattern = special, re.compile(f"({'|'.join(map(re.escape, special))})")
        # Characters that normalisation leaves as they are, alone and side by side (none of these combines).
        latin = map(chr, range(ord("!"), COMBINING))
        self._unchanged = {each for each in latin if each != "<" and model.normalize(f"a{each}a") == f"▁a{each}a"}
        self.segmenter = Segmenter(model, special["<unk>"])

    def __missing__(self, word: str) -> bytes:
        word = replace_surrogates(word)
        if self._unchanged.issuperset(word) and word:
            ids = self.segmenter.segment("▁" + word)
        else:
            ids = []
            for index, text in enumerate(self.special_pattern.split(word)):
                if index % 2:
                    ids.append(self._special[text])
                    continue
                for normalized in self._normalize(text).split("▁")[1:]:
                    ids += self.segmenter.segment("▁" + normalized)
        result = array(self._typecode, ids).tobytes()
        store(self, word, result)
        return result


class Segmenter(dict):
    """The best segmentation of words into pieces. Maps parts of a word (see `segment`) to the ids of their pieces."""

    def __init__(self, model: sentencepiece.SentencePieceProcessor, unk_id: int):
        super().__init__()
        self._unk_id = unk_id
        self._adjacent = set()  # pairs of adjacent characters that occur in a piece
        self._pieces = {}  # trie: character -> (children, id, log-probability of the piece that ends here)
        self._longest, rarest = 1, 0.0
        for i in range(len(model)):
            if model.is_control(i) or model.is_unknown(i):
                continue
            piece, log_probability = model.id_to_piece(i), model.get_score(i)
            self._adjacent.update(pairwise(piece))
            self._longest, rarest = max(self._longest, len(piece)), min(rarest, log_probability)
            node = self._pieces
            for character in piece[:-1]:
                node = node.setdefault(character, ({}, None, 0.0))[0]
            following = node[piece[-1]][0] if piece[-1] in node else {}
            node[piece[-1]] = following, i + SHIFT, log_probability
        self._unknown_score = rarest - UNKNOWN_PENALTY

    def segment(self, word: str) -> list[int]:
        """The ids of the best segmentation of ▁word.

        Two adjacent characters that are adjacent in no piece have a boundary between them in every segmentation. So
        the best segmentation of the word is that of the parts between these boundaries. This is exact, because the sum
        of a few float32 numbers in float64 is. Characters in no piece become <unk>, adjacent ones a single <unk>.
        """
        adjacent, ids, start = self._adjacent, [], 0
        for end, pair in enumerate(pairwise(word), 1):
            if pair not in adjacent:
                ids += self[word[start:end]]
                start = end
        ids += self[word[start:]]
        if self._unk_id in ids:
            ids = [i for index, i in enumerate(ids) if i != self._unk_id or ids[index - 1 : index] != [i]]
        return ids

    def __missing__(self, part: str) -> list[int]:
        """Viterbi search for the highest sum of log-probabilities; of equal ones, the first found.

        A character that is not a piece itself may be <unk>.
        """
        pieces, longest, length = self._pieces, self._longest, len(part)
        score = [0.0] + [float("-inf")] * length  # of the best segmentation of part[:end]
        origin, last = [0] * (length + 1), [0] * (length + 1)  # start and id of its last piece
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
        store(self, part, ids)
        return ids


def replace_surrogates(text: str) -> str:
    """Replaces lone surrogates (JSON's \\ud800), which are no characters, by "?"."""
    return text.encode(errors="replace").decode()


def store(cache: dict, key: str, value) -> None:
    """Adds an entry; a full cache is emptied first."""
    if len(key) <= CACHED_LENGTH:
        if len(cache) >= CACHE_SIZE:
            cache.clear()
        cache[key] = value
