// A weight matrix [rows, columns] as the kernels read it, and the activations that it is multiplied with.
//
// Rows are interleaved in blocks of 16, so that one vector load gives the next column (or 2 bfloat16, or 4 bytes of
// codes) of 16 rows and no horizontal sums are needed:
//   fp32  [block][depth][16]          bf16  [block][depth / 2][16][2]
//   int8  [block][depth / 4][16][4]   int4  [block][depth / 8][16][4], columns 0..3 in the low nibbles, 4..7 in the high
// Scales, and zeros or minimums, lie beside them as [block][group][16]. Rows are padded to 16 and columns to `depth`;
// padding multiplies activations that are zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats.h"

namespace kiloq {

constexpr int kPackedLayout = 1;  // raised when a byte of what follows lies elsewhere: files of packed weights name it
constexpr int kBlockRows = 16;
constexpr int kActivationGroup = 32;  // activations that share one scale, as in GGUF's q8_0

struct Matrix {
    Format format = Format::fp32;
    Offset offset = Offset::none;
    int rows = 0, columns = 0;
    int blocks = 0;                    // of 16 rows
    int depth = 0;                     // columns, padded to kActivationGroup
    int group = 0, groups = 0;         // columns that share a scale; groups of a row
    const uint8_t* values = nullptr;   // 64-byte aligned, as above
    const uint16_t* scales = nullptr;  // half precision
    const uint8_t* offsets = nullptr;  // Offset::zero: bytes; Offset::minimum: half precision

    bool quantised() const { return format == Format::int8 || format == Format::int4; }
    size_t block_bytes() const {
        const size_t elements = static_cast<size_t>(depth) * kBlockRows;
        switch (format) {
            case Format::fp32: return elements * 4;
            case Format::bf16: return elements * 2;
            case Format::int8: return elements;
            case Format::int4: return elements / 2;
        }
        return 0;
    }
};

// Activations for int8 and int4: value = scale * code, but for outliers, whose code is 0. What is needed of a group lies
// together, so that a kernel has one pointer a row.
struct ActivationGroup {
    int8_t codes[kActivationGroup];
    float scale;
    float total;  // scale * sum
    int32_t sum;  // of the codes
};

// An activation that would make the steps of its group too coarse for its neighbours, in full precision.
struct Outlier {
    int32_t column;
    float value;
};

// A row has no more: of n numbers, at most n / t^2 are larger than t times their root mean square, and t is 3 or more.
inline int most_outliers(int depth) { return depth / 9 + 1; }

// Where rounded activations of a row go; see Activations.
struct RoundedRow {
    ActivationGroup* groups;
    Outlier* outliers;
    int32_t* outlier_count;
};

// Rows of activations in the form that a matrix's format needs; each row has `depth` of them.
struct Activations {
    const float* wide = nullptr;              // fp32
    const uint16_t* narrow = nullptr;         // bf16
    const ActivationGroup* groups = nullptr;  // int8 and int4: [rows][depth / kActivationGroup]
    const Outlier* outliers = nullptr;        // [rows][most_outliers(depth)], by column
    const int32_t* outlier_counts = nullptr;  // [rows]
    int depth = 0;
    int rows = 0;
};

// Where products go: y[row * stride + output] (+= with `accumulate`), plus a bias for every output where there is one.
// Both have room for outputs padded to whole blocks.
struct Target {
    float* y = nullptr;
    size_t stride = 0;
    const float* bias = nullptr;
    bool accumulate = false;
};

struct MatrixKernels {
    // Outputs of the blocks [begin, end) of `w` for all rows of `x`. Sums run over columns in one fixed order, whatever
    // the number of rows and blocks.
    void (*multiply)(const Matrix& w, int begin, int end, const Activations& x, const Target& out);
};

}  // namespace kiloq
