// The kernels for AArch64 with the dot product of ARMv8.2.
#include "simd_neon.h"
#include "kernels.inc"
