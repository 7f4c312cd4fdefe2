// Vectors in plain C++, for processors without a path of their own; also the definition of what each function means.
//
// F holds W floats, I holds W 32-bit lanes. A kernel written with these (kernels_*.inc) is compiled once for each
// instruction set. Integer results are exact everywhere, so quantised products agree between instruction sets.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "formats.h"

namespace kiloq::KILOQ_ISA {

constexpr int W = 8;            // lanes; a block of 16 output rows is 16 / W vectors
constexpr int kRowTile = 2;     // activation rows that share one read of the weights
constexpr int kBlockTile = 1;   // blocks of 16 output rows computed together
constexpr int kDotBias = 0;     // what dot4 subtracts from every code

struct F {
    float lane[W];
};
struct I {
    int32_t lane[W];
};

template <class Function>
inline F each(Function f) {
    F out;
    for (int i = 0; i < W; ++i) out.lane[i] = f(i);
    return out;
}
template <class Function>
inline I ieach(Function f) {
    I out;
    for (int i = 0; i < W; ++i) out.lane[i] = f(i);
    return out;
}

inline F load(const float* p) { return each([=](int i) { return p[i]; }); }
inline F load_part(const float* p, int n) { return each([=](int i) { return i < n ? p[i] : 0.0f; }); }  // rest: zeros
inline void store(float* p, F v) { std::memcpy(p, v.lane, sizeof v.lane); }
inline void store_part(float* p, F v, int n) { std::memcpy(p, v.lane, sizeof(float) * n); }
inline F set1(float x) { return each([=](int) { return x; }); }
inline F zero() { return set1(0.0f); }
inline F add(F a, F b) { return each([=](int i) { return a.lane[i] + b.lane[i]; }); }
inline F sub(F a, F b) { return each([=](int i) { return a.lane[i] - b.lane[i]; }); }
inline F mul(F a, F b) { return each([=](int i) { return a.lane[i] * b.lane[i]; }); }
inline F div(F a, F b) { return each([=](int i) { return a.lane[i] / b.lane[i]; }); }
inline F fma(F a, F b, F c) { return each([=](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; }); }
inline F max(F a, F b) { return each([=](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; }); }
inline F min(F a, F b) { return each([=](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; }); }
inline F abs(F a) { return each([=](int i) { return std::fabs(a.lane[i]); }); }
inline F round(F a) { return each([=](int i) { return std::nearbyintf(a.lane[i]); }); }  // ties to even
inline F times_pow2(F a, F n) {  // a * 2^n for whole n from -126 to 127; n may be NaN where a is
    return each([=](int i) {
        const float whole = n.lane[i] == n.lane[i] ? n.lane[i] : 0.0f;  // NaN has no integer
        return a.lane[i] * bits_to_float(static_cast<uint32_t>(static_cast<int>(whole) + 127) << 23);
    });
}
inline F select_less(F a, F b, F yes, F no) {  // lane by lane: a < b ? yes : no
    return each([=](int i) { return a.lane[i] < b.lane[i] ? yes.lane[i] : no.lane[i]; });
}
inline uint32_t at_least(F a, F b) {  // bit i: a >= b in lane i
    uint32_t bits = 0;
    for (int i = 0; i < W; ++i) bits |= static_cast<uint32_t>(a.lane[i] >= b.lane[i]) << i;
    return bits;
}
inline F keep_first(F v, int n, F rest) { return each([=](int i) { return i < n ? v.lane[i] : rest.lane[i]; }); }
inline float sum(F v) {
    float total = 0.0f;
    for (float x : v.lane) total += x;
    return total;
}
inline float largest(F v) {
    float best = v.lane[0];
    for (float x : v.lane) best = x > best ? x : best;
    return best;
}

inline F load_half(const uint16_t* p) { return each([=](int i) { return half_to_float(p[i]); }); }
inline F load_bf16(const uint16_t* p) { return each([=](int i) { return bf16_to_float(p[i]); }); }
inline F load_byte(const uint8_t* p) { return each([=](int i) { return static_cast<float>(p[i]); }); }

inline I load_codes(const void* p) {  // W x 4 bytes
    I out;
    std::memcpy(out.lane, p, sizeof out.lane);
    return out;
}
inline I repeat4(const void* p) {  // the same 4 bytes in every lane
    int32_t word;
    std::memcpy(&word, p, 4);
    return ieach([=](int) { return word; });
}
inline I iset1(int32_t x) { return ieach([=](int) { return x; }); }
inline I bits_from(I v, int shift, int mask) {  // (lane >> shift) & mask
    return ieach([=](int i) { return static_cast<int32_t>(static_cast<uint32_t>(v.lane[i]) >> shift) & mask; });
}
inline I low_nibbles(I v) { return ieach([=](int i) { return v.lane[i] & 0x0F0F0F0F; }); }
inline I high_nibbles(I v) { return ieach([=](int i) { return (v.lane[i] >> 4) & 0x0F0F0F0F; }); }
inline I dot4(I sums, I codes, I values) {  // lane += sum over 4 bytes of (unsigned code - kDotBias) * signed value
    return ieach([=](int i) {
        uint8_t c[4];
        int8_t v[4];
        std::memcpy(c, &codes.lane[i], 4);
        std::memcpy(v, &values.lane[i], 4);
        return sums.lane[i] + c[0] * v[0] + c[1] * v[1] + c[2] * v[2] + c[3] * v[3];
    });
}
inline I dot4_small(I sums, I codes, I values) { return dot4(sums, codes, values); }  // codes of 0..15, no bias
inline F to_float(I v) { return each([=](int i) { return static_cast<float>(v.lane[i]); }); }
inline I to_int(F v) { return ieach([=](int i) { return static_cast<int32_t>(std::lrintf(v.lane[i])); }); }  // nearest
inline void store_bytes(int8_t* p, I v) {  // low byte of each lane; lanes are within int8
    for (int i = 0; i < W; ++i) p[i] = static_cast<int8_t>(v.lane[i]);
}

inline F dot2(F sums, I weights, I values) {  // lane += sum over 2 bfloat16 products
    return each([=](int i) {
        const uint32_t w = static_cast<uint32_t>(weights.lane[i]), v = static_cast<uint32_t>(values.lane[i]);
        const float low = bits_to_float(w << 16) * bits_to_float(v << 16) + sums.lane[i];
        return bits_to_float(w & 0xFFFF0000u) * bits_to_float(v & 0xFFFF0000u) + low;
    });
}

inline void prefetch(const void*) {}
inline void prefetch_far(const void*) {}  // into the second level of cache

}  // namespace kiloq::KILOQ_ISA
