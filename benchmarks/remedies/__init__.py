"""What remedies do on the bundled organism: inoculation, brake, going back, repair, a gate for data.

python -m benchmarks.remedies run [--seeds 5] [--cells dose,controls,…]   goes on where it stopped
python -m benchmarks.remedies gate                                        the data gate, no training
python -m benchmarks.remedies report                                      docs/remedies.md again
"""
