"""The native engines: pybind11 modules that take addresses, sizes, strides and know nothing of torch."""
