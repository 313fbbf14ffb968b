// The Python face of the native code.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_native, module) { module.doc() = "Native kernels of mgpt-edge."; }
