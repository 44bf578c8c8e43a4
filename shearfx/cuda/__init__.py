"""LHSPG's step and statistics as CUDA kernels, compiled when they are first used; torch is the reference everywhere.

How it is put together, from the card upwards:

- ``kernels/``: the CUDA C++ sources, one concept a file, without any toolkit header. The tests build the same files for
  the host (``tests/cuda_host``), where every CUDA thread is a fibre, and compare whole kernels with float64.
- :mod:`shearfx.cuda.sources`, :mod:`shearfx.cuda.compiling`, :mod:`shearfx.cuda.cubins`: which kernel lies in which
  file, NVRTC through NVIDIA's ``cuda.core``, and compiled code kept between runs.
- :mod:`shearfx.cuda.launching`: launches on torch's current stream.
- :mod:`shearfx.cuda.tables`: all tensors of a launch in one table, so that launches don't grow with layers.
- :mod:`shearfx.cuda.statistics`, :mod:`shearfx.cuda.stepping`, :mod:`shearfx.cuda.updating`: what is computed.
- :mod:`shearfx.cuda.choosing`: whether there is a card that can do it; one warning where there is and it can't.

Nothing here imports ``cuda`` until there is a card to use it on.
"""
