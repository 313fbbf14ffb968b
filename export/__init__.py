"""PyTorch to bundle. A weight gets into a bundle, and to its products, on this way:

- `checkpoint.py` names the weights, `shards.py` reads them; `bundle.py` goes through the parts of an engine's lowering;
- `lower/native.py` (or another file there) orders and packs them, rounded by `quantise/int8.py` (or another precision);
- `runtime/engines/native.py` maps the file (`runtime/bundle/tensors.py`); `csrc/bindings/decoder.cpp` finds its tensors
  by name; `csrc/cpu/decoder.cpp` asks for each product, and `csrc/cpu/kernels.cpp` multiplies.
"""
