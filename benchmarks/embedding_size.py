"""An embedding of 256 dimensions on the wire: its bytes with all metadata, and what its vector loses.

The messages are what an agent publishes for observations of a wearable, embedded by wordllama. The peer is JSON, both
with all digits of a float and rounded to four decimals, as a thrifty author would write it.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Sequence

from benchmarks.common import Benchmark, Result, aim, show_aims, table
from mqttcollab import Agent, AgentOptions
from mqttcollab.codec import CBOR, JSON, VectorType, decode, encode
from mqttcollab.errors import RuntimeFailure
from mqttcollab.messages import Embedding
from mqttcollab.runtimes.base import Embedder
from mqttcollab.runtimes.embedders import WordLlamaEmbedder
from mqttcollab.topics import data_topic
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.memory import MemoryBroker, MemoryTransport
from mqttcollab.transport.properties import pack_properties

COUNT = 200
SERVICE = "data.gpt/health/heart-rate"
TOPIC = data_topic(SERVICE, "watch-7", "embedding")
ELEMENTS: tuple[VectorType, ...] = ("float32", "float16", "int8")
THRIFTY = "JSON, 4 decimals"


async def measure(_rounds: int | None = None) -> Result:
    try:
        messages = await _published(WordLlamaEmbedder(256))
    except RuntimeFailure as error:
        return {"missing": f"{error}: pip install 'mqttcollab[embed]'"}
    sizes: dict[str, list[int]] = {}
    packets: dict[str, list[int]] = {}
    errors: dict[str, list[float]] = {}
    for message in messages:
        for name, payload in _encodings(message).items():
            sizes.setdefault(name, []).append(len(payload))
            packets.setdefault(name, []).append(_packet_size(payload, JSON if name.startswith("JSON") else CBOR))
            errors.setdefault(name, []).append(1 - _cosine(message.vector, decode(Embedding, payload).vector))
    medians = {name: statistics.median(each) for name, each in sizes.items()}
    return {
        "model": messages[0].model,
        "messages": len(messages),
        "fields": sorted(messages[0].model_dump(exclude_defaults=True)),
        "bytes": medians,
        "packet_bytes": {name: statistics.median(each) for name, each in packets.items()},
        "size_ratio": {name: size / medians[THRIFTY] for name, size in medians.items()},
        "cosine_error": {n: {"median": statistics.median(e), "max": max(e)} for n, e in errors.items()},
        "aims": [aim("bytes of an int8 embedding with its metadata", medians["CBOR int8"], most=449)],
    }


async def _published(embedder: Embedder) -> list[Embedding]:
    """What an agent publishes beside its observations, as it arrives."""
    broker, dice = MemoryBroker(), random.Random(1)
    messages: list[Embedding] = []
    watcher = MemoryTransport(broker, "watcher")
    await watcher.subscribe(TOPIC, lambda message: messages.append(decode(Embedding, message.payload)))
    await watcher.connect()
    # float32 is what the embedder makes, so nothing is lost before we measure.
    options = AgentOptions(vectors="float32")
    agent = Agent("watch-7", place="on the wrist of the user", embedder=embedder, options=options)
    async with agent.running(lambda name, will: MemoryTransport(broker, name, will=will)):
        for _ in range(COUNT):
            mood = dice.choice(("at rest", "walking", "after a run"))
            text = f"Heart rate {dice.randint(50, 120)}/min, variability {dice.randint(10, 90)} ms, {mood}"
            await agent.observe(SERVICE, text=text)
    await watcher.close()
    return messages


def _encodings(message: Embedding) -> dict[str, bytes]:
    rounded = message.model_copy(update={"vector": [round(x, 4) for x in message.vector]})
    return {
        "JSON": encode(message),
        THRIFTY: encode(rounded),
        **{f"CBOR {kind}": encode(message, CBOR, vectors=kind) for kind in ELEMENTS},
    }


def _packet_size(payload: bytes, content_type: str) -> int:
    """The whole MQTT 5 PUBLISH at QoS 0: fixed header, topic, properties, payload."""
    message = TransportMessage(TOPIC, payload, 0, content_type=content_type, type="mqttcollab.embedding.v1")
    body = 2 + len(TOPIC) + len(pack_properties(message)) + len(payload)
    return 1 + (body.bit_length() + 6) // 7 + body


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def show(result: Result) -> Iterable[str]:
    if "missing" in result:
        yield result["missing"]
        return
    yield f"{result['messages']} messages, {result['model']}; fields: {', '.join(result['fields'])}"
    yield from table(
        ("", "payload", "MQTT packet", f"/ {THRIFTY}", "1 - cosine: median", "greatest"),
        [
            (
                name,
                f"{size:.0f} B",
                f"{result['packet_bytes'][name]:.0f} B",
                f"{result['size_ratio'][name]:.2f}",
                f"{result['cosine_error'][name]['median']:.1e}",
                f"{result['cosine_error'][name]['max']:.1e}",
            )
            for name, size in result["bytes"].items()
        ],
    )
    yield from show_aims(result)


BENCHMARK = Benchmark("embedding_size", "An embedding of 256 dimensions on the wire, with its metadata", measure, show)

if __name__ == "__main__":
    BENCHMARK.main()
