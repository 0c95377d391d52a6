"""The server's counters, in Prometheus' text format: `GET /metrics`.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

import psutil

BUCKETS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


@dataclass
class Histogram:
    """Durations: how many fell into each bucket, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[sum(seconds > bound for bound in BUCKETS_S)] += 1
        self.total_s += seconds

    def lines(self, name: str) -> list[str]:
        out, cumulative = [], 0
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self.counts, strict=True):
            cumulative += count
            out.append(f'{name}_bucket{{le="{bound}"}} {cumulative}')
        return [*out, f"{name}_sum {self.total_s:.6f}", f"{name}_count {cumulative}"]


@dataclass
class Metrics:
    """Counters since the start. Labels come from fixed sets only, so clients can't add new ones."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)  # (route, status); 499: the client left
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)  # (model, `prompt` or `completion`)
    seconds: Histogram = field(default_factory=Histogram)  # of whole chat requests
    first_token_seconds: Histogram = field(default_factory=Histogram)
    in_flight: int = 0  # chat requests
    refused_connections: int = 0
    internal_errors: int = 0  # requests that were malformed, or that failed unexpectedly

    def text(self, connections: int) -> str:
        """All metrics.

        Args:
            connections: open at the moment.
        """
        process = psutil.Process(os.getpid())
        out = [
            "# HELP noesis_requests_total Requests by route and HTTP status.",
            "# TYPE noesis_requests_total counter",
        ]
        out += [
            f'noesis_requests_total{{route="{route}",status="{status}"}} {n}'
            for (route, status), n in sorted(self.requests.items())
        ]
        out += ["# HELP noesis_tokens_total Tokens of prompts and completions.", "# TYPE noesis_tokens_total counter"]
        out += [
            f'noesis_tokens_total{{model="{model}",kind="{kind}"}} {n}'
            for (model, kind), n in sorted(self.tokens.items())
        ]
        for name, help_, histogram in (
            ("noesis_request_seconds", "From a chat request to the end of its answer.", self.seconds),
            ("noesis_first_token_seconds", "From a chat request to its first token.", self.first_token_seconds),
        ):
            out += [f"# HELP {name} {help_}", f"# TYPE {name} histogram", *histogram.lines(name)]
        gauges = {
            "noesis_in_flight": ("Chat requests in progress.", self.in_flight),
            "noesis_connections": ("Open connections.", connections),
            "noesis_resident_bytes": ("Resident memory of the process.", process.memory_info().rss),
        }
        for name, (help_, value) in gauges.items():
            out += [f"# HELP {name} {help_}", f"# TYPE {name} gauge", f"{name} {value}"]
        counters = {
            "noesis_refused_connections_total": ("Connections refused above the limit.", self.refused_connections),
            "noesis_internal_errors_total": ("Malformed requests, unexpected failures.", self.internal_errors),
        }
        for name, (help_, value) in counters.items():
            out += [f"# HELP {name} {help_}", f"# TYPE {name} counter", f"{name} {value}"]
        return "\n".join(out) + "\n"
