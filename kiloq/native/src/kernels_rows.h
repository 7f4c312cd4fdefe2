// Work on single rows of activations between the matrix products.
#pragma once

#include <cstdint>

namespace kiloq {

struct RoundedRow;

struct RowKernels {
    // out = x / rms(x) * weight over n values; x and out may be the same.
    void (*normalise)(const float* x, const float* weight, float eps, int n, float* out);
    // n values in groups of kActivationGroup; the last group is filled up with zeros. What is larger than `outlier` times
    // the root mean square of all, at least 3, is an outlier.
    void (*quantise)(const float* x, int n, float outlier, const RoundedRow& out);
    // n values to bfloat16.
    void (*narrow)(const float* x, int n, uint16_t* out);
    // out = silu(gate) * up over n values; any of them may be the same.
    void (*swiglu)(const float* gate, const float* up, int n, float* out);
    // Turns the pairs (x[i], x[i + pairs]) by the angles of the tables.
    void (*rotate)(float* x, const float* cosines, const float* sines, int pairs);
};

}  // namespace kiloq
