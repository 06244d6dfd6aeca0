"""What Prometheus reads: vLLM's names where it has one, so that its dashboards work, else `pard2:`."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from pard2.engine.statistics import Step
from pard2.serve.engines import Engines
from pard2.serve.ticket import Made, Ticket

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_HISTOGRAMS = {
    "time_to_first_token_seconds": ("From a request's arrival to its first token.", _SECONDS),
    "inter_token_latency_seconds": ("Between two steps of an answer, each of one token or more.", _SECONDS),
    "request_time_per_output_token_seconds": ("Decoding time of an answer by its tokens after the first.", _SECONDS),
    "e2e_request_latency_seconds": ("From arrival to the last token.", _SECONDS),
    "request_queue_time_seconds": ("Until the prompt began to be read.", _SECONDS),
    "request_prefill_time_seconds": ("Reading the prompt.", _SECONDS),
    "request_decode_time_seconds": ("From the first token to the last.", _SECONDS),
    "request_inference_time_seconds": ("From the begin of the prompt's pass to the last token.", _SECONDS),
    "request_prompt_tokens": ("Tokens of a prompt.", _TOKENS),
    "request_generation_tokens": ("Tokens of an answer.", _TOKENS),
}
_COUNTERS = {
    "vllm:prompt_tokens": "Tokens of prompts that have been read.",
    "vllm:generation_tokens": "Tokens of answers.",
    "vllm:spec_decode_num_drafts": "Proposals of the draft.",
    "vllm:spec_decode_num_draft_tokens": "Tokens of the draft's proposals.",
    "vllm:spec_decode_num_accepted_tokens": "Tokens of proposals that were accepted.",
}


@dataclass
class _Clock:
    """When a completion's first and latest steps were made, and its tokens so far."""

    first: float = 0.0
    last: float = 0.0
    prefill: float = 0.0
    tokens: int = 0


class Metrics:
    """model_name: the label that every series bears."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        labels = {"model_name": model_name, "engine": "0"}
        self._labels = labels

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(name, text, [*labels, *more], registry=self.registry)

        self._counters = {name: counter(name, text).labels(**labels) for name, text in _COUNTERS.items()}
        self._histograms = {
            name: Histogram(f"vllm:{name}", text, list(labels), buckets=buckets, registry=self.registry).labels(**labels)
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        self._by_position = counter("vllm:spec_decode_num_accepted_tokens_per_pos", "Accepted tokens by their place in the proposal.", "position")
        self._ended = counter("vllm:request_success", "Answers that ended, by why.", "finished_reason")
        self._refused = counter("pard2:requests_refused", "Requests without an answer, by status.", "status")
        self._gone = counter("pard2:requests_abandoned", "Requests whose client went away.").labels(**labels)
        self._methods = counter("pard2:requests", "Answers that were begun, by method.", "method")
        self._clocks: WeakKeyDictionary[Ticket, dict[int, _Clock]] = WeakKeyDictionary()

    def watch(self, engines: Engines, tickets: Callable[[], list[Ticket]]) -> None:
        """Read the state of engines and requests whenever metrics are asked for."""
        self.registry.register(_State(self._labels, engines, tickets))

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def refuse(self, status: int) -> None:
        self._refused.labels(**self._labels, status=str(status)).inc()

    def abandon(self) -> None:
        self._gone.inc()

    # --- in the thread that decodes ---------------------------------------------------------------

    def observe(self, ticket: Ticket, made: Made) -> None:
        """Count a step as it is made."""
        clocks = self._clocks.setdefault(ticket, {})
        clock, now, step = clocks.setdefault(made.number, _Clock()), time.perf_counter(), made.step
        if step.token_ids:
            self._counters["vllm:generation_tokens"].inc(len(step.token_ids))
            if not clock.tokens:
                self._observe_first(ticket, made, clock, now)
            else:
                self._histograms["inter_token_latency_seconds"].observe(now - clock.last)
                self._observe_draft(step)
            clock.last, clock.tokens = now, clock.tokens + len(step.token_ids)
        if step.finish_reason is not None:
            self._observe_end(ticket, clock, step)

    def _observe_first(self, ticket: Ticket, made: Made, clock: _Clock, now: float) -> None:
        clock.first, clock.prefill = now, made.step.seconds
        prompt = len(ticket.sequences[made.number].prompt)
        self._counters["vllm:prompt_tokens"].inc(prompt)
        self._methods.labels(**self._labels, method=ticket.way.method).inc()
        self._histograms["request_prompt_tokens"].observe(prompt)
        self._histograms["time_to_first_token_seconds"].observe(now - ticket.arrived)
        self._histograms["request_prefill_time_seconds"].observe(clock.prefill)
        self._histograms["request_queue_time_seconds"].observe(max(0.0, now - ticket.arrived - clock.prefill))

    def _observe_draft(self, step: Step) -> None:
        if not step.proposed:
            return
        self._counters["vllm:spec_decode_num_drafts"].inc()
        self._counters["vllm:spec_decode_num_draft_tokens"].inc(step.proposed)
        self._counters["vllm:spec_decode_num_accepted_tokens"].inc(step.accepted)
        for position in range(step.accepted):
            self._by_position.labels(**self._labels, position=str(position)).inc()

    def _observe_end(self, ticket: Ticket, clock: _Clock, step: Step) -> None:
        # What vLLM calls the two that the API has no word for.
        reason = {"cancelled": "abort"}.get(str(step.finish_reason), str(step.finish_reason))
        self._ended.labels(**self._labels, finished_reason=reason).inc()
        if step.finish_reason not in ("stop", "length"):
            return
        decoding = clock.last - clock.first
        self._histograms["request_generation_tokens"].observe(clock.tokens)
        self._histograms["e2e_request_latency_seconds"].observe(clock.last - ticket.arrived)
        self._histograms["request_decode_time_seconds"].observe(decoding)
        self._histograms["request_inference_time_seconds"].observe(decoding + clock.prefill)
        if clock.tokens > 1:
            self._histograms["request_time_per_output_token_seconds"].observe(decoding / (clock.tokens - 1))


class _State:
    """What is read when it is asked for, and not counted as it happens."""

    def __init__(self, labels: dict[str, str], engines: Engines, tickets: Callable[[], list[Ticket]]) -> None:
        self._labels, self._engines, self._tickets = labels, engines, tickets

    def collect(self) -> Iterator[Any]:
        tickets, first = self._tickets(), self._engines.first
        gauges = {
            "vllm:num_requests_running": ("Answers that are decoded.", sum(ticket.running for ticket in tickets)),
            "vllm:num_requests_waiting": ("Answers that wait for a place.", sum(ticket.waiting for ticket in tickets)),
            "vllm:kv_cache_usage_perc": (
                "Share of the first engine's cache that is taken; 1 is all.",
                1 - first.free_cache_tokens / first.cache_tokens,
            ),
            "pard2:engines": ("Engines that there are.", len(self._engines.all)),
        }
        for name, (text, value) in gauges.items():
            family = GaugeMetricFamily(name, text, labels=list(self._labels))
            family.add_metric(list(self._labels.values()), value)
            yield family
        totals = self._engines.totals
        cycles = CounterMetricFamily("pard2:cycles", "Decoding cycles, each of all that are decoded together.", labels=list(self._labels))
        cycles.add_metric(list(self._labels.values()), totals.cycles)
        yield cycles
        seconds = CounterMetricFamily("pard2:pass_seconds", "Time of passes, by what it went into.", labels=[*self._labels, "part"])
        for part in ("prefill", "draft", "verify", "other"):
            seconds.add_metric([*self._labels.values(), part], getattr(totals, f"{part}_seconds"))
        yield seconds
