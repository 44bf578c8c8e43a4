"""Pictures of any stage of the pipeline: what depends on what, what may be cut, and what a plan cuts.

``scene`` is a picture as data, ``build`` makes it of a graph and a plan, ``folding`` folds what repeats, ``view`` says
what is seen. ``dot``, ``page`` and ``exports`` write it; ``files`` knows which suffix means which.
"""
