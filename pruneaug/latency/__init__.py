"""Latency: records on disk, the table over them, and a network's predicted time."""

from pruneaug.latency.network import LayerLatency, NetworkLatency, predict
from pruneaug.latency.records import LatencyRecord, record_from_json, record_to_json
from pruneaug.latency.store import LatencyStore
from pruneaug.latency.table import LatencyTable

__all__ = [
    "LatencyRecord",
    "LatencyStore",
    "LatencyTable",
    "LayerLatency",
    "NetworkLatency",
    "predict",
    "record_from_json",
    "record_to_json",
]
