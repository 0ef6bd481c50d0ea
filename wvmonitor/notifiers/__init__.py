"""Verdicts pushed out: Alertmanager and signed webhooks, over one careful POST (`http.py`)."""
