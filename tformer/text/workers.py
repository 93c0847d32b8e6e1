"""Blocks of text to ids by several processes, in order.

What encodes words and characters holds Python's lock, and so do the lists of the engine: processes share the
work out, threads would not. A worker ends when its pipe does, however its parent ended.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from tformer.errors import TformerError
from tformer.text.blocks import TextBlock
from tformer.text.pieces import Document
from tformer.text.tokenizer import Tokenizer, UnknownCharacterError

AHEAD = 3  # blocks read ahead for each process


@dataclass(frozen=True)
class EncodedBlock:
    """The ids of a block; `ends`, where in them documents end, after the token that ends one."""

    ids: np.ndarray
    ends: np.ndarray
    n_bytes: int
    n_characters: int


def n_processors() -> int:
    """Of those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def encode_block(tokenizer: Tokenizer, block: TextBlock) -> EncodedBlock:
    """The ids of a block, with the token after each document that ends in it.

    Raises UnknownCharacterError for a character that a char vocabulary lacks.
    """
    size = (sum(len(text.encode()) for text in block.texts), sum(map(len, block.texts)))
    if not block.how:
        ids = tokenizer.encode_array(block.texts)
        if not block.closes:
            return EncodedBlock(ids, np.zeros(0, dtype=np.int64), *size)
        ids = np.append(ids, np.asarray([tokenizer.end_id], dtype=ids.dtype))
        return EncodedBlock(ids, np.array([len(ids)]), *size)
    documents = list(block.documents())
    ids = tokenizer.encode_documents(Document([text], ends=True) for text in documents)
    ends = np.flatnonzero(ids == tokenizer.end_id) + 1
    if len(ends) != len(documents):  # the tokenizer reads the token from a text, too
        lengths = [len(tokenizer.encode_documents([Document([text], ends=True)])) for text in documents]
        ends = np.cumsum(lengths)
    return EncodedBlock(ids, ends, *size)


def encode_blocks(folder: Path, blocks: Iterable[TextBlock], processes: int) -> Iterator[EncodedBlock]:
    """The blocks encoded by the tokenizer in a folder, in order, by so many processes; one does it here.

    A single block is not worth a process. Raises UnknownCharacterError with its place, and TformerError where
    a process ends that should not.
    """
    blocks = iter(blocks)
    first = list(islice(blocks, 2))
    if processes > 1 and len(first) > 1:
        yield from _by_workers(folder, chain(first, blocks), processes)
        return
    yield from encode_here(Tokenizer.load(folder), chain(first, blocks))


def encode_here(tokenizer: Tokenizer, blocks: Iterable[TextBlock]) -> Iterator[EncodedBlock]:
    """The blocks encoded by this process. Raises UnknownCharacterError with its place."""
    for block in blocks:
        try:
            yield encode_block(tokenizer, block)
        except UnknownCharacterError as error:
            raise error.at(block.place(error.character)) from None


def _by_workers(folder: Path, blocks: Iterable[TextBlock], processes: int) -> Iterator[EncodedBlock]:
    free: SimpleQueue[Connection] = SimpleQueue()

    def encoded(block: TextBlock) -> EncodedBlock:
        worker = free.get()
        try:
            worker.send(block)
            answer = worker.recv()
        except (EOFError, OSError):  # of the others that wait, none may wait for this one
            free.put(worker)
            advice = "memory may be short: give fewer --processes"
            raise TformerError("a process that encodes has ended", "", advice) from None
        free.put(worker)
        if isinstance(answer, EncodedBlock):
            return answer
        kind, *values = answer
        if kind == "unknown":
            character, position, size = values
            raise UnknownCharacterError(character, position, size, block.place(character))
        raise TformerError(f"a process that encodes {block.label} failed", values[0])

    with _workers(folder, processes) as workers, ThreadPoolExecutor(processes) as threads:
        for worker in workers:
            free.put(worker)
        waiting: deque[Future[EncodedBlock]] = deque()
        try:
            for block in blocks:
                waiting.append(threads.submit(encoded, block))
                if len(waiting) > AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # where it is given up as well
            for future in waiting:
                future.cancel()


@contextmanager
def _workers(folder: Path, processes: int) -> Iterator[list[Connection]]:
    """Processes with the tokenizer of a folder, by a pipe each; gone when the block ends."""
    context = get_context("spawn")  # a copy of a process that has threads may hang
    started, ours = [], []
    with _interrupts_blocked():
        for _ in range(processes):
            own, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, folder), daemon=True)
            process.start()
            theirs.close()
            started.append(process)
            ours.append(own)
    try:
        yield ours
    finally:
        for process in started:
            process.terminate()
            process.join()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal: those that are started here leave it to this one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(connection: Connection, folder: Path) -> None:
    """What a worker does, until its pipe is closed: a block comes, its ids go."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many processes as processors
    if sys.platform == "win32":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        tokenizer = Tokenizer.load(folder)
        while True:
            block = connection.recv()
            try:
                connection.send(encode_block(tokenizer, block))
            except UnknownCharacterError as error:
                connection.send(("unknown", error.character, error.position, error.size))
            except (TformerError, MemoryError) as error:
                connection.send(("failed", str(error) or type(error).__name__))
