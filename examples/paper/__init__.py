"""Figures of arXiv 2511.05408, one script each: on the bundled organism or on any chat model."""
