"""Watching a live run: `Monitor.observe(model, step)`, whatever the framework."""
