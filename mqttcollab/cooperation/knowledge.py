"""What an agent has learned from its peers: answers with their source and age, so that the second time is local."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mqttcollab.cooperation.note import Note, clean, clean_data, clean_source, is_volatile, refusal, unpack
from mqttcollab.cooperation.sameness import Question, difference, read, sameness
from mqttcollab.cooperation.store import read_notes, write_notes
from mqttcollab.errors import ConfigError
from mqttcollab.messages import MAX_EXAMPLES, ContextItem, Reply, Source
from mqttcollab.topics import matches

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mqttcollab.runtimes.base import Embedder

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recalled:
    """A note that answers a question.

    Attributes:
        similarity: how far the two questions are the same, 0 to 1; see `sameness`.
        age_s: seconds since the answer was given.
        reason: why it answers, for a person.
    """

    note: Note
    similarity: float
    age_s: float
    reason: str

    def reply(self, request_id: str) -> Reply:
        """The note as a reply, with its first source and its age."""
        note = self.note
        return Reply(
            id=request_id,
            output=note.text,
            data=note.data,
            confidence=note.confidence,
            agent=note.agent,
            service=note.service,
            sources=[source.model_copy() for source in note.sources],
        )


class KnowledgeBase:
    """Notes of answers that peers gave, by question; belongs to one event loop or thread.

    A recalled note answers a question only if the two are the same question (see `sameness`). What a note says is
    another's text: data, never an instruction.

    Args:
        embedder: for `context` by meaning, and for words of the same meaning; None compares words.
        capacity: the most notes; past it the one that was not used for the longest time is forgotten.
        ttl_s: how long knowledge holds, in seconds.
        volatile_ttl_s: how long data holds, and what is asked about a moment, where nothing better is known.
        threshold: how near (cosine) two words must be to stand for each other; None: words must be equal.
            `sameness.calibrate` finds it from pairs of questions; 0.8 suits wordllama.
        least_confidence: an answer of less is not kept; one that says nothing about it is.
        clock: seconds; only differences count.

    Raises:
        ConfigError: a number is out of range, or there is a threshold without an embedder.
    """

    def __init__(
        self,
        embedder: Embedder | None = None,
        *,
        capacity: int = 1000,
        ttl_s: float = 7 * 86400,
        volatile_ttl_s: float = 10.0,
        threshold: float | None = None,
        least_confidence: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("capacity", capacity), ("ttl_s", ttl_s), ("volatile_ttl_s", volatile_ttl_s)):
            if not value > 0:
                raise ConfigError(f"knowledge base: {name} is {value:g}; it must be over 0")
        if threshold is not None and embedder is None:
            raise ConfigError("knowledge base: a threshold compares words by their embeddings: pass an embedder")
        self.ttl_s = ttl_s
        self.volatile_ttl_s = volatile_ttl_s
        self.least_confidence = least_confidence
        self.on_change: list[Callable[[], None]] = []
        self._embedder = embedder
        self._capacity = capacity
        self._threshold = threshold
        self._clock = clock
        self._notes: OrderedDict[Key, Note] = OrderedDict()  # the one used last stands last
        self._vectors: dict[Key, NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self._notes)

    def __iter__(self) -> Iterator[Note]:
        """The notes that hold, the one used last first."""
        return iter([note for note in reversed(self._notes.values()) if self.left_s(note) > 0])

    def age_s(self, note: Note) -> float:
        """Seconds since the answer was given."""
        return max(0.0, self._clock() - note.learned_at)

    def left_s(self, note: Note) -> float:
        """Seconds for which a note still holds; 0 or less once it has expired."""
        return note.ttl_s - self.age_s(note)

    def remember(self, question: str, reply: Reply, *, ttl_s: float | None = None) -> Note | None:
        """Keeps an answer, instead of an earlier one to the same question.

        An answer out of another's notes stays as old as it was, and keeps its source.

        Args:
            ttl_s: how long it holds at most; None goes by what it is, knowledge or data.

        Returns:
            None if it is not worth keeping: an error, a part, little confidence, or a question that needs others to
            be understood (`refusal` says why).
        """
        question = clean(question).strip()
        if refusal(question, reply, self.least_confidence) is not None:
            return None
        data, age_s, left_s = unpack(reply.data)
        volatile = is_volatile(question, reply)
        usual_s = ttl_s or (self.volatile_ttl_s if volatile else self.ttl_s)
        giver = clean_source(Source(agent=reply.agent, service=reply.service))
        sources = [clean_source(source) for source in reply.sources] or [giver]
        relayed = age_s is not None and bool(reply.sources)
        first = sources[0] if relayed else giver
        note = Note(
            question=question,
            text=clean(reply.output or "").strip(),
            data=clean_data(data),
            sources=sources,
            agent=first.agent,
            service=first.service,
            via=giver.agent if relayed else None,
            confidence=reply.confidence,
            learned_at=self._clock() - (age_s or 0.0),
            ttl_s=min(usual_s, (age_s or 0.0) + left_s) if left_s is not None else usual_s,
            volatile=volatile,
        )
        if self.left_s(note) <= 0:
            return None
        self._keep(note)
        self._changed()
        return note

    def recall(self, question: str, *, service: str | None = None, agent: str | None = None) -> Recalled | None:
        """The note that answers a question, if there is one that holds.

        Args:
            service: takes only what came from this service, or from one under this MQTT filter.
            agent: takes only what came from this agent.
        """
        asked = read(clean(question).strip())
        found = self._find(asked, question) if asked.standalone else None
        if found is None:
            return None
        key, similarity = found
        note = self._notes[key]
        if self.left_s(note) <= 0:
            self._drop(key)
            self._changed()
            return None
        if (service is not None and not matches(service, note.service or "")) or agent not in (None, note.agent):
            return None
        note.uses += 1
        self._notes.move_to_end(key)
        same = "the same question" if similarity == 1 else f"the same but for words of like meaning ({similarity:.2f})"
        return Recalled(note, similarity, self.age_s(note), f"{same}, {note.quoted(self.age_s(note))}")

    def context(self, question: str, k: int = 3, *, least: float = 0.4) -> list[ContextItem]:
        """The notes nearest to a question, for a prompt: quoted, with source and age in words.

        Args:
            k: how many at most.
            least: the least closeness: a cosine, without an embedder the share of words in common.
        """
        notes = {read(note.question).words: note for note in self}
        if not notes or k < 1:
            return []
        scores = zip(self._closeness(clean(question), list(notes)), notes.values(), strict=True)
        near = sorted(((score, note) for score, note in scores if score >= least), key=lambda pair: -pair[0])
        return [
            ContextItem(text=note.quoted(self.age_s(note)), agent=note.agent, service=note.service, data=note.data)
            for _, note in near[:k]
        ]

    def questions(self, most: int = MAX_EXAMPLES, *, longest: int = 200) -> list[str]:
        """The questions, of at most `longest` characters, that others may ask too: most used first, then the newest."""
        notes = [note for note in self if note.shareable and len(note.question) <= longest]
        notes.sort(key=lambda note: (-note.uses, -note.learned_at))
        return [note.question for note in notes[:most]]

    def forget(self, question: str) -> bool:
        """Forgets the note of a question; returns whether there was one."""
        key = read(clean(question).strip()).words
        if key not in self._notes:
            return False
        self._drop(key)
        self._changed()
        return True

    def expire(self) -> int:
        """Forgets what no longer holds; returns how many notes that were."""
        gone = [key for key, note in self._notes.items() if self.left_s(note) <= 0]
        for key in gone:
            self._drop(key)
        if gone:
            self._changed()
        return len(gone)

    # On disk

    def save(self, path: str | Path) -> None:
        """Writes the notes that hold in place of a file, see `write_notes`; blocks, so call it in a thread."""
        notes = list(self._notes.values())
        write_notes(Path(path), [(note, self.age_s(note)) for note in notes if self.left_s(note) > 0])

    def load(self, path: str | Path) -> int:
        """Adds the notes of a file, aged by the time since it was saved; returns how many still hold.

        Raises:
            ConfigError: the file can't be read, or a line of it is no note; then nothing is added.
        """
        count = 0
        for note, age_s in read_notes(Path(path)):
            note.learned_at = self._clock() - age_s
            if self.left_s(note) > 0:
                self._keep(note)
                count += 1
        self._changed()
        return count

    # Inside

    def _find(self, asked: Question, question: str) -> tuple[Key, float] | None:
        note = self._notes.get(asked.words)
        if note is not None:
            return (asked.words, 1.0) if difference(asked, read(note.question)) is None else None
        if self._threshold is None:
            return None
        alike = [key for key in self._notes if len(key) == len(asked.words)]
        scored = [(sameness(question, self._notes[key].question, self._embedder), key) for key in alike]
        score, key = max(scored, default=(0.0, ()))
        return (key, score) if score >= self._threshold else None

    def _keep(self, note: Note) -> None:
        key = read(note.question).words
        before = self._notes.pop(key, None)
        note.uses += before.uses if before is not None else 0
        self._notes[key] = note
        while len(self._notes) > self._capacity:
            self._drop(next(iter(self._notes)))

    def _drop(self, key: Key) -> None:
        self._notes.pop(key)
        self._vectors.pop(key, None)

    def _closeness(self, question: str, keys: list[Key]) -> list[float]:
        if self._embedder is None:
            asked = set(read(question).words)
            return [len(asked & set(key)) / max(1, len(asked | set(key))) for key in keys]
        new = [key for key in keys if key not in self._vectors]
        rows = self._embedder.embed([question, *(self._notes[key].question for key in new)])
        self._vectors |= dict(zip(new, rows[1:], strict=True))
        return [float(self._vectors[key] @ rows[0]) for key in keys]

    def _changed(self) -> None:
        for tell in self.on_change:
            tell()
