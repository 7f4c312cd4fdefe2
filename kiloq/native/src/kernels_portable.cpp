// The kernels in plain C++.
#define KILOQ_ISA portable
#include "simd_portable.h"
#include "kernels.inc"
