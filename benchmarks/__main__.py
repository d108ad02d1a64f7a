"""All benchmarks: `python -m benchmarks [--json] [--rounds N]`."""

from benchmarks import (
    agent_start,
    area,
    choosing,
    durable,
    embedding_size,
    journal,
    orchestrator_overhead,
    request_reply,
)
from benchmarks.collaboration import run as collaboration
from benchmarks.common import run_all

if __name__ == "__main__":
    run_all(
        [
            module.BENCHMARK
            for module in (
                request_reply,
                orchestrator_overhead,
                agent_start,
                embedding_size,
                area,
                journal,
                durable,
                choosing,
                collaboration,
            )
        ]
    )
