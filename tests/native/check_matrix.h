// multiply() against sums in double over weights that are decoded here from the codes as they were given, and its
// promise that an output's bits depend neither on the other activation rows nor on the range of blocks.
#pragma once

#include "check.h"
#include "cpu.h"
#include "pack.h"

namespace check {

using namespace kiloq;

struct Case {
    int rows, columns;
    Format format;
    Offset offset;
    int group;
    bool extreme;  // every code and activation at the end of its range, where 16-bit sums would overflow

    // Rows of activations; 35 are more than two of AMX's tiles of 16.
    int inputs() const { return rows == 17 && group == 64 ? 35 : 9; }

    void name(char (&out)[120]) const {
        const char* formats[] = {"fp32", "bf16", "int8", "int4"};
        const char* offsets[] = {"none", "zero", "minimum"};
        std::snprintf(out, sizeof out,
            "multiply %dx%d %s offset %s group %d%s", rows, columns, formats[static_cast<int>(format)],
            offsets[static_cast<int>(offset)], group, extreme ? " extreme" : "");
    }
};

// A packed matrix beside what it was made of.
struct Weights {
    Arena arena;
    MatrixBuilder builder;
    int group, groups;
    std::vector<uint8_t> codes, zeros;
    std::vector<uint16_t> scales, minimums;
    std::vector<float> numbers;

    explicit Weights(const Case& c)
        : arena(MatrixBuilder::bytes(c.rows, c.columns, c.format, c.offset, c.group)),
          builder(arena, c.rows, c.columns, c.format, c.offset, c.group),
          group(builder.matrix().group),
          groups(builder.matrix().groups) {}

    const Matrix& matrix() const { return builder.matrix(); }
    double scale(int row, int column) const { return half_to_float(scales[row * groups + column / group]); }
    // The code without its middle or zero, and what is added to scale times it.
    int code(int row, int column) const {
        const Matrix& m = matrix();
        const int code = codes[static_cast<size_t>(row) * m.columns + column];
        if (m.offset == Offset::zero) return code - zeros[row * groups + column / group];
        return m.offset == Offset::none ? code - (m.format == Format::int8 ? 128 : 8) : code;
    }
    double minimum(int row, int column) const {
        return matrix().offset == Offset::minimum ? half_to_float(minimums[row * groups + column / group]) : 0.0;
    }
    double weight(int row, int column) const {
        const Matrix& m = matrix();
        if (m.quantised()) return scale(row, column) * code(row, column) + minimum(row, column);
        const float x = numbers[static_cast<size_t>(row) * m.columns + column];
        return m.format == Format::bf16 ? bf16_to_float(float_to_bf16(x)) : x;
    }
    // The largest magnitude that a kernel may add for a column: codes and zeros may be summed apart.
    double size(int row, int column) const {
        if (!matrix().quantised()) return std::fabs(weight(row, column));
        return scale(row, column) * (matrix().format == Format::int8 ? 512 : 32) + std::fabs(minimum(row, column));
    }
};

void fill(Weights& w, const Case& c, Random& random) {
    const size_t count = static_cast<size_t>(c.rows) * c.columns, shared = static_cast<size_t>(c.rows) * w.groups;
    if (!w.matrix().quantised()) {
        w.numbers = random.values(count);
        that(w.builder.put_numbers(0, c.rows, w.numbers.data(), Source::fp32),
             "put_numbers says that numbers are not finite");
        return;
    }
    const int most = c.format == Format::int8 ? 255 : 15;
    for (size_t i = 0; i < count; ++i) {
        const int code = c.extreme ? (random.below(4) == 0 ? 0 : most) : random.below(most + 1);
        w.codes.push_back(static_cast<uint8_t>(code));
    }
    for (size_t i = 0; i < shared; ++i) {
        w.scales.push_back(float_to_half(random.uniform(0.001f, 0.01f)));
        w.zeros.push_back(static_cast<uint8_t>(c.extreme ? random.below(2) * most : random.below(most + 1)));
        w.minimums.push_back(float_to_half(random.uniform(-1.0f, 0.1f)));
    }
    const int half = c.rows / 2;  // in two pieces, as a file is streamed
    w.builder.put_codes(0, half, w.codes.data(), w.scales.data(), w.zeros.data(), w.minimums.data());
    const size_t at = static_cast<size_t>(half) * w.groups;
    w.builder.put_codes(half, c.rows - half, w.codes.data() + static_cast<size_t>(half) * c.columns,
        w.scales.data() + at, w.zeros.data() + at, w.minimums.data() + at);
}

// Rows of activations in every form; columns beyond the matrix's are zero, rows behind the last are unusable.
struct Inputs {
    std::vector<float> wide;
    std::vector<uint16_t> narrow;
    std::vector<ActivationGroup> groups;
    std::vector<Outlier> outliers;
    std::vector<int32_t> outlier_counts;
    int count, depth;
    bool quantised, halved;

    Inputs(const Case& c, const Matrix& m, Random& random) : count(c.inputs()), depth(m.depth) {
        quantised = m.quantised();
        halved = m.format == Format::bf16;
        outliers.resize(static_cast<size_t>(count) * most_outliers(depth), {-1, kNan});
        for (int r = 0; r < count; ++r) {
            outlier_counts.push_back(0);
            for (int first = 0; first < depth; first += kActivationGroup) {
                ActivationGroup group{};
                for (int k = first; k < first + kActivationGroup; ++k) {
                    const bool used = k < c.columns;
                    const int code = c.extreme ? (r % 2 ? 127 : -127) : random.below(255) - 127;
                    wide.push_back(used ? random.value() : 0.0f);
                    narrow.push_back(float_to_bf16(wide.back()));
                    group.codes[k - first] = static_cast<int8_t>(used ? code : 0);
                    if (used && r % 3 != 0 && random.below(20) == 0 && outlier_counts[r] < most_outliers(depth)) {
                        group.codes[k - first] = 0;
                        outliers[r * most_outliers(depth) + outlier_counts[r]++] = {k, 5.0f * random.value()};
                    }
                    group.sum += group.codes[k - first];
                }
                group.scale = random.uniform(0.0005f, 0.02f);
                group.total = group.scale * static_cast<float>(group.sum);
                groups.push_back(group);
            }
        }
    }

    size_t groups_of(int rows) const { return static_cast<size_t>(rows) * depth / kActivationGroup; }
    double value(int row, int column) const {
        const size_t at = static_cast<size_t>(row) * depth + column;
        if (!quantised) return halved ? bf16_to_float(narrow[at]) : wide[at];
        for (int i = 0; i < outlier_counts[row]; ++i) {
            const Outlier& outlier = outliers[row * most_outliers(depth) + i];
            if (outlier.column == column) return outlier.value;
        }
        const ActivationGroup& group = groups[groups_of(row) + column / kActivationGroup];
        return static_cast<double>(group.scale) * group.codes[column % kActivationGroup];
    }
    Activations rows(int first, int count) const {
        const size_t at = static_cast<size_t>(first) * depth;
        return {.wide = wide.data() + at, .narrow = narrow.data() + at, .groups = groups.data() + groups_of(first),
                .outliers = outliers.data() + static_cast<size_t>(first) * most_outliers(depth),
                .outlier_counts = outlier_counts.data() + first, .depth = depth, .rows = count};
    }
};

// Outputs of all rows together, which everything else is compared with.
struct Reference {
    std::vector<float> before, bias, plain, finished;  // finished: with bias and accumulate
    size_t stride;
};

void check_values(const Case& c, const Weights& w, const Inputs& x, const Reference& ref, const char* name) {
    for (int r = 0; r < x.count; ++r) {
        for (int row = 0; row < c.rows; ++row) {
            double exact = 0.0, size = 0.0;
            for (int k = 0; k < c.columns; ++k) {
                exact += w.weight(row, k) * x.value(r, k);
                size += w.size(row, k) * std::fabs(x.value(r, k));
            }
            // Sums of integers are exact, so codes cost two additions a group and three roundings of each product.
            const double steps = w.matrix().quantised() ? 2.0 * x.depth / kActivationGroup + most_outliers(x.depth) + 6 : c.columns + 1;
            const double tolerance = (steps + 1) * kHalfUlp * size;
            const size_t at = r * ref.stride + row;
            that(near(ref.plain[at], exact, tolerance), "%s: row %d output %d is %.9g, not %.9g +- %.2g", name, r, row,
                 ref.plain[at], exact, tolerance);
            const double all = exact + ref.bias[row] + ref.before[at];
            const double more =
                tolerance + 2 * kHalfUlp * (std::fabs(exact) + std::fabs(ref.bias[row]) + std::fabs(all));
            that(near(ref.finished[at], all, more),
                 "%s: row %d output %d with bias, added, is %.9g, not %.9g +- %.2g", name, r, row, ref.finished[at],
                 all, more);
        }
    }
}

// The first `count` rows from row `first`, in the ranges of blocks that `cut` divides; bits as in the reference, and
// nothing written outside.
void check_part(const Weights& w, const Inputs& x, const Reference& ref, int first, int count, int cut,
    const char* name) {
    const int blocks = w.matrix().blocks;
    for (const bool finish : {false, true}) {
        const std::vector<float>& expected = finish ? ref.finished : ref.plain;
        std::vector<float> y = ref.before;
        const Target out{y.data() + first * ref.stride, ref.stride, finish ? ref.bias.data() : nullptr, finish};
        kernels().matrix.multiply(w.matrix(), cut, blocks, x.rows(first, count), out);
        bool good = true;
        for (int r = 0; r < x.count && good; ++r) {
            const size_t at = r * ref.stride, written = r >= first && r < first + count ? cut * kBlockRows : ref.stride;
            good = same_bits(&y[at], &ref.before[at], written);
        }
        that(good, "%s: rows %d..%d, blocks from %d: wrote outside its range", name, first, first + count, cut);
        kernels().matrix.multiply(w.matrix(), 0, cut, x.rows(first, count), out);
        const size_t at = first * ref.stride;
        that(same_bits(&y[at], &expected[at], count * ref.stride),
             "%s: rows %d..%d cut at block %d differ from all rows together", name, first, first + count, cut);
    }
}

void check_case(const Case& c, uint64_t seed) {
    char name[120];
    c.name(name);
    Random random(seed);
    Weights w(c);
    fill(w, c, random);
    const Inputs x(c, w.matrix(), random);
    Reference ref;
    ref.stride = static_cast<size_t>(w.matrix().blocks) * kBlockRows;
    ref.before = random.values(x.count * ref.stride);
    ref.bias = random.values(ref.stride);
    ref.plain = ref.finished = ref.before;
    const Activations all = x.rows(0, x.count);
    kernels().matrix.multiply(w.matrix(), 0, w.matrix().blocks, all, {ref.plain.data(), ref.stride, nullptr, false});
    kernels().matrix.multiply(w.matrix(), 0, w.matrix().blocks, all, {ref.finished.data(), ref.stride, ref.bias.data(),
        true});
    check_values(c, w, x, ref, name);
    const int blocks = w.matrix().blocks;
    for (int count = 1; count <= x.count; ++count) {
        check_part(w, x, ref, x.count - count, count, count % (blocks + 1), name);
    }
    for (int row = 0; row < x.count; ++row) check_part(w, x, ref, row, 1, row % blocks, name);
    std::vector<float> unpacked(c.columns);
    for (int row = 0; row < c.rows; ++row) {
        unpack_row(w.matrix(), row, unpacked.data());
        for (int k = 0; k < c.columns; ++k) {  // scale * code fits a float; adding a minimum rounds once
            that(unpacked[k] == static_cast<float>(w.weight(row, k)),
                 "%s: unpacked weight %d, %d is %.9g, not %.9g", name, row, k, unpacked[k], w.weight(row, k));
        }
    }
}

void check_matrices() {
    uint64_t seed = 0;
    for (const int rows : {1, 5, 16, 17, 40}) {
        for (const int columns : {1, 32, 33, 64, 100, 576}) {
            for (const Format format : {Format::fp32, Format::bf16}) {
                check_case({rows, columns, format, Offset::none, 0, false}, ++seed);
            }
            for (const Format format : {Format::int8, Format::int4}) {
                for (const Offset offset : {Offset::none, Offset::zero, Offset::minimum}) {
                    for (const int group : {32, 64, 128, 0}) {
                        check_case({rows, columns, format, offset, group, false}, ++seed);
                    }
                    check_case({rows, columns, format, offset, 64, true}, ++seed);
                }
            }
        }
    }
}

}  // namespace check
