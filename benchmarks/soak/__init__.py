"""Long runs of ordinary work: does memory stay, do descriptors, do answers come?

`python -m benchmarks.soak` runs them in full (three hours); single ones by name, shorter ones with
`--scale`.
"""
