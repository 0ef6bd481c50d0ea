"""Readings made visible: the trainer's own log, and Prometheus."""
