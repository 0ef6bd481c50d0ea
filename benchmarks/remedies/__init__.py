"""What remedies do on the bundled organism: inoculation, brake, going back, repair, screened data.

python -m benchmarks.remedies run [--seeds 5] [--cells dose,turning,…]   goes on where it stopped
python -m benchmarks.remedies gate                                       the gate, no training
python -m benchmarks.remedies report                                     docs/remedies.md again
"""
