"""Mutated input of every kind, for a while: `pytest -m fuzz`.

All targets together take RLFN_FUZZ_SECONDS (600). Whatever may crash or hang runs in a child
process, so that a crash is a find and not the end. Inputs that were finds are kept in
`.hypothesis/finds`, to be made into tests.
"""
