"""Parts of a corpus to token ids, in worker processes."""

import hashlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy

from ..cli import DataError
from ..tokenizer import Tokenizer
from .documents import documents
from .parts import NOT_UTF8, Part


class Rules(NamedTuple):
    """Which documents are kept, and which of them are held out."""

    field: str | None  # of JSON lines
    drop_control: bool
    min_tokens: int
    max_unknown: float
    held_out: float
    hash_paragraphs: bool  # for finding duplicates


class EncodedPart(NamedTuple):
    """The documents of a part as token ids. The segments of a document are its paragraphs, then its </s>."""

    ids: bytes  # of all documents
    lengths: numpy.ndarray  # of each document, in tokens, with </s>
    held_out: numpy.ndarray  # of each document, bool
    segments: numpy.ndarray  # length of each segment, in tokens; empty without hash_paragraphs
    hashes: numpy.ndarray  # text_hash of each paragraph, 0 for each </s>; empty without hash_paragraphs
    counts: Counter
    origin: Part  # without its content
    lines: int  # or rows


def encode_part(part: Part, tokenizer: Tokenizer, rules: Rules) -> EncodedPart:
    """The documents of a part that the rules keep; those that are dropped are counted by reason."""
    encode, dtype = tokenizer.encode_words, numpy.dtype(tokenizer.typecode)
    end_of_document = numpy.array([tokenizer.eos_id], dtype).tobytes()
    ids, lengths, held_out, segments, hashes = [], [], [], [], []
    counts = Counter(part.counts)
    threshold = round(rules.held_out * 2**32)
    for paragraphs in documents(part, rules.field, rules.drop_control, counts):
        encoded = list(map(encode, paragraphs))
        document = b"".join(encoded)
        length = len(document) // dtype.itemsize
        if not length:
            counts["documents dropped, being empty"] += 1
            continue
        if length < rules.min_tokens:
            counts["documents dropped, being short"] += 1
            continue
        if rules.max_unknown < 1:
            unknown = numpy.count_nonzero(numpy.frombuffer(document, dtype) == tokenizer.unk_id)
            if unknown > rules.max_unknown * length:
                counts["documents dropped, being unknown"] += 1
                continue
        ids += (document, end_of_document)
        lengths.append(length + 1)
        held_out.append(threshold > 0 and zlib.crc32("\n".join(paragraphs).encode()) < threshold)
        if rules.hash_paragraphs:
            segments += [len(each) // dtype.itemsize for each in encoded] + [1]
            hashes += [text_hash(paragraph) for paragraph in paragraphs] + [0]
    types = ((lengths, numpy.int64), (held_out, bool), (segments, numpy.int64), (hashes, numpy.uint64))
    arrays = (numpy.array(values, kind) for values, kind in types)
    return EncodedPart(b"".join(ids), *arrays, counts, part._replace(content=b""), count_lines(part))


def count_lines(part: Part) -> int:
    """Also rows: those with a text, and those whose text is not UTF-8."""
    if isinstance(part.content, bytes):
        return len(part.content.splitlines())
    return len(part.content) + part.counts.get(NOT_UTF8, 0)


def text_hash(text: str) -> int:
    """64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


# ---- worker processes ------------------------------------------------------------------------------------------


def encode_parts(parts: Iterable[Part], tokenizer: Tokenizer, rules: Rules, workers: int) -> Iterator[EncodedPart]:
    """The encoded parts, in order. Memory holds at most two parts per worker, whatever the size of the corpus.

    Raises DataError if a worker is killed.
    """
    if workers == 1:
        yield from (encode_part(part, tokenizer, rules) for part in parts)
        return
    context = multiprocessing.get_context("spawn")
    given = tokenizer.path, tokenizer.content, rules
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=given)
    try:
        waiting = deque(submit(pool, part) for part in islice(parts, 2 * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(submit(pool, part) for part in islice(parts, 1))
            yield result
    except BrokenProcessPool:
        raise DataError("A worker was killed, probably because memory ran out. Use fewer --workers.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def submit(pool: ProcessPoolExecutor, part: Part) -> Future:
    """If this starts a worker process, it inherits a blocked SIGINT: Ctrl-C is handled by the main process alone."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return pool.submit(encode_in_worker, part)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(path: Path, content: bytes, rules: Rules) -> None:
    """Runs once in each worker, which exits when the main process does, even if that is killed."""
    global worker_tokenizer, worker_rules
    sentinel, wait = multiprocessing.parent_process().sentinel, multiprocessing.connection.wait
    threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()
    worker_tokenizer, worker_rules = Tokenizer(path, content), rules


def encode_in_worker(part: Part) -> EncodedPart:
    return encode_part(part, worker_tokenizer, worker_rules)
