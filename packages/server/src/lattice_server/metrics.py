"""What Prometheus reads at ``/metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """The figures of one control plane, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.peers = Gauge(
            "lattice_peers",
            "Live peers",
            ["workspace", "preset"],
            registry=self.registry,
        )
        self.enrollments = Counter(
            "lattice_enrollments", "Enrollments answered with 201", registry=self.registry
        )
        self.renewals = Counter("lattice_renewals", "Renewals", registry=self.registry)
        self.delegations = Counter(
            "lattice_delegations", "Tokens made for sub-agents", registry=self.registry
        )
        self.ended = Counter(
            "lattice_peers_ended", "Peers that ended", ["reason"], registry=self.registry
        )
        self.refusals = Counter(
            "lattice_refusals", "Requests refused", ["code"], registry=self.registry
        )
        self.gateway_connected = Gauge(
            "lattice_gateway_connected",
            "1 while the gateway is connected and in step",
            registry=self.registry,
        )
        self.ack_seconds = Histogram(
            "lattice_gateway_ack_seconds",
            "From the publication of a change to the gateway's acknowledgement",
            buckets=LATENCIES,
            registry=self.registry,
        )
        self.reconciler_seconds = Histogram(
            "lattice_reconciler_seconds",
            "One pass of the reconciler",
            buckets=LATENCIES,
            registry=self.registry,
        )
        self.addresses_free = Gauge(
            "lattice_addresses_free", "Free overlay addresses", registry=self.registry
        )
        self.denied_flows = Counter(
            "lattice_denied_packets", "Packets of refused flows", registry=self.registry
        )

        self.connections_refused = Counter(
            "lattice_connections_refused",
            "Connections beyond what there may be, of all or of one source",
            registry=self.registry,
        )
        self.quarantined = Counter(
            "lattice_quarantined", "Agents ended for too many denials", registry=self.registry
        )
        self.webhook_deliveries = Counter(
            "lattice_webhook_deliveries",
            "Attempts to deliver events",
            ["result"],
            registry=self.registry,
        )
        self.webhook_backlog = Gauge(
            "lattice_webhook_backlog", "Events not delivered yet", registry=self.registry
        )

    def exposition(self) -> bytes:
        """The text format."""
        return generate_latest(self.registry)
