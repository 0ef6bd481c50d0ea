"""Where readings are shown (exporters), and who is told of them (notifiers)."""
