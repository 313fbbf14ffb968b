"""PyTorch to bundle. A weight gets into a bundle, and to its products, on this way:

`checkpoint.py` opens the safetensors -> `bundle.py` goes through the parts of an engine's lowering ->
`lower/native.py` (or another file there) orders and packs them, rounded by `quantise/int8.py` (or another precision) ->
the runtime maps the file (`runtime/engines/native.py`) -> `csrc/bindings/decoder.cpp` finds its tensors by name ->
`csrc/cpu/kernels.cpp` multiplies.
"""
