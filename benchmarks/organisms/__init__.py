"""The organism suite: hundreds of fine-tunes of the bundled model, scored at every checkpoint.

`python -m benchmarks.organisms run` trains what is missing, `report` computes every figure from the
records and writes the results and the page. Read `catalogue.py` (which runs), `references.py`
(against what, and the leakage rule), `evaluate.py` (what is computed).
"""
