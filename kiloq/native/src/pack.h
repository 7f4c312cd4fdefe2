// Building a Matrix: its memory from an arena, its rows from codes or from numbers.
#pragma once

#include "arena.h"
#include "matrix.h"

namespace kiloq {

enum class Source { fp32, bf16, half };  // element types that are read

// A matrix under construction, written row range by row range so that a file can be streamed.
class MatrixBuilder {
public:
    // group: columns that share a scale, a multiple of kActivationGroup or 0 for the whole row; unused by fp32, bf16.
    // Throws std::invalid_argument for impossible sizes, std::bad_alloc when the arena is full.
    MatrixBuilder(Arena& arena, int rows, int columns, Format format, Offset offset, int group);

    // Bytes that such a matrix takes from its arena.
    static size_t bytes(int rows, int columns, Format format, Offset offset, int group);

    // Rows [first, first + count) from codes [count, columns] with scales and offsets [count, groups], all contiguous;
    // codes are stored as they are. minimums (half) for Offset::minimum, zeros for Offset::zero.
    void put_codes(int first, int count, const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros,
                   const uint16_t* minimums);

    // Rows from numbers [count, columns]: converted to nearest, or quantised to nearest with one scale (and minimum) a
    // group. Returns false when one of them is NaN or infinite.
    bool put_numbers(int first, int count, const void* numbers, Source source);

    const Matrix& matrix() const { return matrix_; }

private:
    void put_code(int row, int column, uint8_t code);
    bool put_row(int row, const float* values);
    void put_quantised_row(int row, const float* values);
    size_t group_at(int row, int group) const;

    Matrix matrix_;
    uint8_t* values_;
    uint16_t* scales_;
    uint8_t* offsets_;
};

// One row back as numbers [columns]: what the embedding looks up.
void unpack_row(const Matrix& matrix, int row, float* out);

}  // namespace kiloq
