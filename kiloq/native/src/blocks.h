// GGUF's blocks into a matrix in one pass over the file's bytes: nothing of a model's size is made in between.
//
// A block is 32 columns of a row: the scale and for Q4_1 the minimum as halves, then the codes, in four bits those of
// columns i and i + 16 in byte i, in eight bits signed. Source: ggml-org/llama.cpp, ggml/src/ggml-common.h.
#pragma once

#include "pack.h"

namespace kiloq {

enum class Blocks { q4_0, q4_1, q8_0 };

// Bytes of a block.
size_t bytes_of(Blocks kind);

// Whether a matrix holds the integers of such blocks as they are.
bool holds(const Matrix& matrix, Blocks kind);

// Rows [first, first + count) from rows of whole blocks, for a matrix that holds them. Returns false when a scale or
// minimum is NaN or infinite.
bool put_blocks(MatrixBuilder& builder, int first, int count, const uint8_t* blocks, Blocks kind);

}  // namespace kiloq
