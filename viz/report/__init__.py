"""The report of a run, or of several beside each other: one page made of what lies in their folders.

``reading`` reads a folder, whole or damaged; ``headline``, ``widths``, ``knowledge``, ``pruning``, ``recovery`` and
``setup`` each make a section of it, as data; ``page`` makes the page.
"""
