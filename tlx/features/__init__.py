"""The frozen prefix of a network, run once: what its first stages make of every picture is kept and trained on.

`decide` says from which stage a phase trains and why, `store` keeps arrays on disk, `cached` fills them and is what batches come from.
"""
