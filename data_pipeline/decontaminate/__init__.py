"""Keep evaluation out of what a model learns from: items of benchmarks, an index of them, what a text holds of them,
what is done about it, and a certificate that says so.
"""
