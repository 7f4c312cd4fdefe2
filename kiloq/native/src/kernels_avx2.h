// The kernels for AVX2; CMake compiles this file once without and once with AVX-VNNI.
#include "simd_avx2.h"
#include "kernels.inc"
