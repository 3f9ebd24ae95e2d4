"""What `GET /metrics` tells, in the format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

STAGES = ("read", "decode", "queue", "engine", "detections", "answer")


class Metrics:
    """Counters of one server process.

    Attributes
    ----------
    queue : Gauge
        Images that wait for the inference thread.
    batch_size : Histogram
        Images that were taken at a time.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.queue = Gauge("ssd_algo_queue_images", "Images that wait for inference.", registry=self._registry)
        self.batch_size = Histogram(
            "ssd_algo_batch_images",
            "Images of a batch.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self._registry,
        )
        self._requests = Counter(
            "ssd_algo_requests", "Answered requests, by route and status.", ("route", "status"), registry=self._registry
        )
        self._stages = Histogram(
            "ssd_algo_stage_seconds",
            f"Seconds of a stage of an image, {', '.join(STAGES)}; of the engine, of a batch.",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        for stage in STAGES:
            self._stages.labels(stage)
        self._total = Histogram(
            "ssd_algo_request_seconds",
            "Seconds of a request to /invocations, from its headers to its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._model = Info("ssd_algo_model", "The model and what runs it.", registry=self._registry)

    def describe(self, model: dict[str, str]) -> None:
        """Tell of the model that is served."""
        self._model.info(model)

    def seconds(self, stage: str, seconds: float) -> None:
        """A stage has taken so long."""
        self._stages.labels(stage).observe(seconds)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered."""
        self._requests.labels(route, str(status)).inc()
        if route == "/invocations":
            self._total.observe(seconds)

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)
