// The functions that exist once for each instruction set; cpu.h chooses a table at run time.
#pragma once

#include "kernels_attention.h"
#include "kernels_rows.h"
#include "kernels_sampling.h"
#include "matrix.h"

namespace kiloq {

struct Kernels {
    MatrixKernels matrix;
    RowKernels rows;
    AttentionKernels attention;
    SamplingKernels sampling;
};

}  // namespace kiloq
