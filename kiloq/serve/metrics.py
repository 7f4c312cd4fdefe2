"""What Prometheus sees: vLLM's names with our prefix, read from the engine when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kiloq import __version__
from kiloq.generate.requests import Answer, Request
from kiloq.serve.service import Service

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One server's counts."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._http = Counter(
            "kiloq:http_requests", "Requests by route and status.", ["route", "code"], registry=registry
        )
        self._prompt = Counter("kiloq:prompt_tokens", "Tokens of prompts that were answered.", registry=registry)
        self._made = Counter("kiloq:generation_tokens", "Tokens of answers.", registry=registry)
        self._ended = Counter("kiloq:request_success", "Answers by their end.", ["finished_reason"], registry=registry)
        self._aborted = Counter("kiloq:request_aborted", "Answers that nobody waited for.", registry=registry)
        self._first = Histogram(
            "kiloq:time_to_first_token_seconds", "From submission.", buckets=SECONDS, registry=registry
        )
        self._between = Histogram(
            "kiloq:inter_token_latency_seconds", "Mean of an answer.", buckets=TOKEN_SECONDS, registry=registry
        )
        self._whole = Histogram(
            "kiloq:e2e_request_latency_seconds", "From submission to the end.", buckets=SECONDS, registry=registry
        )

    def http(self, route: str, status: int) -> None:
        """A request was answered."""
        self._http.labels(route, str(status)).inc()

    def ended(self, request: Request) -> None:
        """All answers of a request are there, or it was given up."""
        self._prompt.inc(len(request.prompt))
        for answer in request.answers:
            self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        done = answer.completion
        if done is None or done.finish_reason == "cancelled":
            self._aborted.inc()
            return
        times = done.timings
        self._ended.labels(done.finish_reason).inc()
        self._made.inc(done.usage.completion_tokens)
        self._first.observe(times.prefill_s)
        if times.decode_tokens:
            self._between.observe(times.decode_s / times.decode_tokens)
        self._whole.observe(times.prefill_s + times.decode_s)

    def watch(self, service: Service) -> None:
        """Shows the numbers of a service's engine too, once there is one."""
        self._registry.register(_Engine(service))

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)


class _Engine(Collector):
    """The engine's state at the moment of reading."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Gauges and counters."""
        if not self._service.ready:
            return
        model = self._service.model
        scheduler = model.engine.scheduler
        blocks, counters = scheduler.blocks, scheduler.counters
        yield GaugeMetricFamily("kiloq:num_requests_running", "Answers in the making.", len(scheduler.running))
        yield GaugeMetricFamily("kiloq:num_requests_waiting", "Answers in the queue.", len(scheduler.waiting))
        yield GaugeMetricFamily(
            "kiloq:kv_cache_usage_perc", "Share of blocks in use.", blocks.live / max(blocks.total, 1)
        )
        yield GaugeMetricFamily("kiloq:kv_cache_kept_blocks", "Blocks that are kept for reuse.", blocks.idle)
        yield CounterMetricFamily("kiloq:prefix_cache_queries", "Tokens looked up.", counters.prefix_queries)
        yield CounterMetricFamily("kiloq:prefix_cache_hits", "Tokens found.", counters.prefix_hits)
        yield CounterMetricFamily("kiloq:num_preemptions", "Answers sent back to the queue.", counters.preemptions)
        build = GaugeMetricFamily("kiloq:build_info", "The program.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        info = GaugeMetricFamily("kiloq:model_info", "The model.", labels=["model", "weights", "engine"])
        info.add_metric([model.name, model.dtype, model.backend], 1)
        yield info
