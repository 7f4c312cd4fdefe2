// The kernels for AVX-512; CMake compiles this file once without and once with the BF16 dot product.
#include "simd_avx512.h"
#include "kernels.inc"
