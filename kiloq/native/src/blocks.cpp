// See blocks.h.
#include "blocks.h"

#include <vector>

namespace kiloq {
namespace {

constexpr int kBlock = 32;  // columns

size_t head_bytes(Blocks kind) { return kind == Blocks::q4_1 ? 4 : 2; }

void take_codes(const uint8_t* bytes, Blocks kind, uint8_t* codes) {
    if (kind == Blocks::q8_0) {
        for (int i = 0; i < kBlock; ++i) codes[i] = bytes[i] ^ 0x80u;  // adds 128 to a signed byte
    } else {
        for (int i = 0; i < kBlock / 2; ++i) codes[i] = bytes[i] & 0x0Fu;
        for (int i = 0; i < kBlock / 2; ++i) codes[kBlock / 2 + i] = bytes[i] >> 4;
    }
}

bool finite_half(uint16_t half) { return (half & 0x7C00u) != 0x7C00u; }

}  // namespace

size_t bytes_of(Blocks kind) { return head_bytes(kind) + (kind == Blocks::q8_0 ? kBlock : kBlock / 2); }

bool holds(const Matrix& m, Blocks kind) {
    return m.format == (kind == Blocks::q8_0 ? Format::int8 : Format::int4) && m.columns % kBlock == 0 &&
           m.group == kBlock && m.offset == (kind == Blocks::q4_1 ? Offset::minimum : Offset::none);
}

bool put_blocks(MatrixBuilder& builder, int first, int count, const uint8_t* blocks, Blocks kind) {
    const Matrix& m = builder.matrix();
    std::vector<uint8_t> codes(m.columns);
    std::vector<uint16_t> scales(m.groups), minimums(m.groups);
    bool finite = true;
    for (int r = 0; r < count; ++r) {
        for (int g = 0; g < m.groups; ++g, blocks += bytes_of(kind)) {
            std::memcpy(&scales[g], blocks, 2);
            if (kind == Blocks::q4_1) std::memcpy(&minimums[g], blocks + 2, 2);
            finite = finite && finite_half(scales[g]) && finite_half(minimums[g]);
            take_codes(blocks + head_bytes(kind), kind, &codes[static_cast<size_t>(g) * kBlock]);
        }
        builder.put_codes(first + r, 1, codes.data(), scales.data(), nullptr, minimums.data());
    }
    return finite;
}

}  // namespace kiloq
