"""Spans, metrics and log records by OpenTelemetry."""
