// See pack.h. Layouts are those of matrix.h.
#include "pack.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

namespace kiloq {
namespace {

size_t code_place(const Matrix& m, int row, int column) {  // of the byte that holds a code
    const int width = m.format == Format::int8 ? 4 : 8;
    const size_t line = static_cast<size_t>(column / width) * kBlockRows + row % kBlockRows;
    return row / kBlockRows * m.block_bytes() + line * 4 + column % 4;
}

Matrix shaped(int rows, int columns, Format format, Offset offset, int group) {
    if (rows < 1 || columns < 1 || group < 0 || group % kActivationGroup != 0) {
        throw std::invalid_argument("a matrix needs rows, columns and groups of a multiple of 32 columns");
    }
    Matrix m;
    m.format = format;
    m.offset = offset;
    m.rows = rows;
    m.columns = columns;
    m.blocks = (rows + kBlockRows - 1) / kBlockRows;
    m.depth = (columns + kActivationGroup - 1) / kActivationGroup * kActivationGroup;
    m.group = group == 0 || group > m.depth ? m.depth : group;
    m.groups = (m.depth + m.group - 1) / m.group;
    return m;
}

size_t group_count(const Matrix& m) { return static_cast<size_t>(m.blocks) * m.groups * kBlockRows; }
size_t scale_bytes(const Matrix& m) { return m.quantised() ? group_count(m) * 2 : 0; }
size_t offset_bytes(const Matrix& m) {
    if (m.offset == Offset::none) return 0;
    return group_count(m) * (m.offset == Offset::minimum ? 2 : 1);
}
size_t lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

// To the nearest whole number, ties to even, for |value| < 2^22: what adding 1.5 * 2^23 leaves. nearbyint would be a
// call for every weight where the processor's own instruction cannot be assumed.
inline float whole(float value) {
    constexpr float kNoFraction = 12582912.0f;
    return (value + kNoFraction) - kNoFraction;
}

}  // namespace

MatrixBuilder::MatrixBuilder(Arena& arena, int rows, int columns, Format format, Offset offset, int group)
    : matrix_(shaped(rows, columns, format, offset, group)) {
    values_ = arena.take(matrix_.blocks * matrix_.block_bytes());
    scales_ = reinterpret_cast<uint16_t*>(arena.take(scale_bytes(matrix_)));
    offsets_ = arena.take(offset_bytes(matrix_));
    matrix_.values = values_;
    matrix_.scales = scales_;
    matrix_.offsets = offsets_;
}

size_t MatrixBuilder::bytes(int rows, int columns, Format format, Offset offset, int group) {
    const Matrix m = shaped(rows, columns, format, offset, group);
    return lines(m.blocks * m.block_bytes()) + lines(scale_bytes(m)) + lines(offset_bytes(m));
}

size_t MatrixBuilder::group_at(int row, int group) const {
    return (static_cast<size_t>(row / kBlockRows) * matrix_.groups + group) * kBlockRows + row % kBlockRows;
}

void MatrixBuilder::put_code(int row, int column, uint8_t code) {
    uint8_t& place = values_[code_place(matrix_, row, column)];
    if (matrix_.format == Format::int8) {
        place = code;
    } else if (column % 8 < 4) {
        place = static_cast<uint8_t>((place & 0xF0u) | (code & 0x0Fu));
    } else {
        place = static_cast<uint8_t>((place & 0x0Fu) | (code << 4));
    }
}

void MatrixBuilder::put_codes(int first, int count, const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros,
                              const uint16_t* minimums) {
    const Matrix& m = matrix_;
    for (int r = 0; r < count; ++r) {
        const uint8_t* row_codes = codes + static_cast<size_t>(r) * m.columns;
        uint8_t* line = values_ + code_place(m, first + r, 0);
        const int whole = m.columns / 8 * 8;
        for (int column = 0; column < whole; column += 8, row_codes += 8) {
            if (m.format == Format::int8) {
                std::memcpy(line, row_codes, 4);
                std::memcpy(line + kBlockRows * 4, row_codes + 4, 4);
                line += kBlockRows * 8;
            } else {
                uint32_t low, high;  // four codes each
                std::memcpy(&low, row_codes, 4);
                std::memcpy(&high, row_codes + 4, 4);
                low |= (high & 0x0F0F0F0Fu) << 4;
                std::memcpy(line, &low, 4);
                line += kBlockRows * 4;
            }
        }
        for (int column = whole; column < m.columns; ++column) put_code(first + r, column, *row_codes++);
        const size_t source = static_cast<size_t>(r) * m.groups;
        for (int g = 0; g < m.groups; ++g) {
            const size_t place = group_at(first + r, g);
            scales_[place] = scales[source + g];
            if (m.offset == Offset::zero) offsets_[place] = zeros[source + g];
            if (m.offset == Offset::minimum) reinterpret_cast<uint16_t*>(offsets_)[place] = minimums[source + g];
        }
    }
}

bool MatrixBuilder::put_numbers(int first, int count, const void* numbers, Source source) {
    std::vector<float> row(matrix_.columns);
    bool finite = true;
    for (int r = 0; r < count; ++r) {
        const size_t begin = static_cast<size_t>(r) * matrix_.columns;
        const uint16_t* narrow = static_cast<const uint16_t*>(numbers) + begin;
        switch (source) {
            case Source::fp32: std::memcpy(row.data(), static_cast<const float*>(numbers) + begin, row.size() * 4); break;
            case Source::bf16: std::transform(narrow, narrow + row.size(), row.begin(), bf16_to_float); break;
            case Source::half: std::transform(narrow, narrow + row.size(), row.begin(), half_to_float); break;
        }
        finite = put_row(first + r, row.data()) && finite;
    }
    return finite;
}

bool MatrixBuilder::put_row(int row, const float* values) {
    const Matrix& m = matrix_;
    const size_t block = static_cast<size_t>(row / kBlockRows) * m.block_bytes();
    if (m.format == Format::fp32) {
        float* place = reinterpret_cast<float*>(values_ + block) + row % kBlockRows;
        for (int k = 0; k < m.columns; ++k) place[static_cast<size_t>(k) * kBlockRows] = values[k];
    } else if (m.format == Format::bf16) {
        uint16_t* place = reinterpret_cast<uint16_t*>(values_ + block) + row % kBlockRows * 2;
        for (int k = 0; k < m.columns; ++k) {
            place[static_cast<size_t>(k / 2) * kBlockRows * 2 + k % 2] = float_to_bf16(values[k]);
        }
    } else {
        put_quantised_row(row, values);
    }
    float poison = 0.0f;  // NaN as soon as one value is not finite
    for (int k = 0; k < m.columns; ++k) poison += values[k] * 0.0f;
    return poison == 0.0f;
}

void MatrixBuilder::put_quantised_row(int row, const float* values) {
    const Matrix& m = matrix_;
    const float most = m.format == Format::int8 ? 255.0f : 15.0f, middle = m.format == Format::int8 ? 128.0f : 8.0f;
    std::vector<uint8_t> codes(m.columns);
    std::vector<uint16_t> scales(m.groups), minimums(m.groups);
    for (int g = 0; g < m.groups; ++g) {
        const int begin = g * m.group, end = std::min(m.columns, begin + m.group);
        const auto [low, high] = std::minmax_element(values + begin, values + end);
        float start = 0.0f, scale, zero = middle;
        if (m.offset == Offset::minimum) {
            minimums[g] = float_to_half(*low);
            start = half_to_float(minimums[g]);
            scale = (*high - start) / most;
            zero = 0.0f;
        } else {
            scale = std::max(std::fabs(*low), std::fabs(*high)) / (middle - 1.0f);
        }
        scales[g] = float_to_half(scale);
        scale = half_to_float(scales[g]);
        const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        for (int k = begin; k < end; ++k) {
            const float code = whole((values[k] - start) * inverse) + zero;
            codes[k] = code >= 0.0f ? static_cast<uint8_t>(std::min(code, most)) : 0;  // NaN becomes 0
        }
    }
    const std::vector<uint8_t> zeros(m.groups, static_cast<uint8_t>(middle));
    put_codes(row, 1, codes.data(), scales.data(), zeros.data(), minimums.data());
}

void unpack_row(const Matrix& m, int row, float* out) {
    const size_t block = static_cast<size_t>(row / kBlockRows) * m.block_bytes();
    const int lane = row % kBlockRows;
    for (int k = 0; k < m.columns; ++k) {
        if (m.format == Format::fp32) {
            out[k] = reinterpret_cast<const float*>(m.values + block)[static_cast<size_t>(k) * kBlockRows + lane];
        } else if (m.format == Format::bf16) {
            const uint16_t* values = reinterpret_cast<const uint16_t*>(m.values + block);
            out[k] = bf16_to_float(values[(static_cast<size_t>(k / 2) * kBlockRows + lane) * 2 + k % 2]);
        } else {
            const uint8_t byte = m.values[code_place(m, row, k)];
            const int code = m.format == Format::int8 ? byte : k % 8 < 4 ? byte & 0x0F : byte >> 4;
            const size_t at = (static_cast<size_t>(row / kBlockRows) * m.groups + k / m.group) * kBlockRows + lane;
            const float scale = half_to_float(m.scales[at]);
            switch (m.offset) {
                case Offset::none: out[k] = scale * static_cast<float>(code - (m.format == Format::int8 ? 128 : 8)); break;
                case Offset::zero: out[k] = scale * static_cast<float>(code - m.offsets[at]); break;
                case Offset::minimum:
                    out[k] = scale * static_cast<float>(code) + half_to_float(reinterpret_cast<const uint16_t*>(m.offsets)[at]);
                    break;
            }
        }
    }
}

}  // namespace kiloq
