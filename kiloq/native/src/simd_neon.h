// Vectors for AArch64 with the dot product of signed bytes (optional in ARMv8.2; Cortex-A75 and A55, Neoverse, Apple's
// have it). See simd_portable.h for what each function means. Codes are unsigned and the product is signed, so dot4
// flips their top bit, which subtracts 128: for weights and cached numbers around 128 that is what the kernels want.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace kiloq::KILOQ_ISA {

constexpr int W = 4;
constexpr int kRowTile = 4;    // 16 sums, 8 vectors of codes and 2 of activations: 26 of the 32 registers
constexpr int kBlockTile = 1;
constexpr int kDotBias = 128;
using F = float32x4_t;
using I = int32x4_t;

inline uint32x4_t first(int n) {
    constexpr int32_t kLanes[W] = {0, 1, 2, 3};
    return vcltq_s32(vld1q_s32(kLanes), vdupq_n_s32(n));
}

inline F load(const float* p) { return vld1q_f32(p); }
inline F load_part(const float* p, int n) {
    float lanes[W] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return vld1q_f32(lanes);
}
inline void store(float* p, F v) { vst1q_f32(p, v); }
inline void store_part(float* p, F v, int n) {
    float lanes[W];
    vst1q_f32(lanes, v);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
inline F set1(float x) { return vdupq_n_f32(x); }
inline F zero() { return vdupq_n_f32(0.0f); }
inline F add(F a, F b) { return vaddq_f32(a, b); }
inline F sub(F a, F b) { return vsubq_f32(a, b); }
inline F mul(F a, F b) { return vmulq_f32(a, b); }
inline F div(F a, F b) { return vdivq_f32(a, b); }
inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
// Not vmaxq and vminq: where a or b is NaN these give NaN, and the kernels are written for a result of b.
inline F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline F abs(F a) { return vabsq_f32(a); }
inline F round(F a) { return vrndnq_f32(a); }
inline F times_pow2(F a, F n) {
    const int32x4_t exponent = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23);
    return mul(a, vreinterpretq_f32_s32(exponent));
}
inline F select_less(F a, F b, F yes, F no) { return vbslq_f32(vcltq_f32(a, b), yes, no); }
inline uint32_t at_least(F a, F b) {
    constexpr uint32_t kBits[W] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgeq_f32(a, b), vld1q_u32(kBits)));
}
inline F keep_first(F v, int n, F rest) { return vbslq_f32(first(n), v, rest); }
inline float sum(F v) { return vaddvq_f32(v); }
inline float largest(F v) { return vmaxvq_f32(v); }

inline F load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline F load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
inline F load_byte(const uint8_t* p) {
    uint32_t bytes;
    std::memcpy(&bytes, p, W);
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(bytes)))));
}

inline I load_codes(const void* p) { return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }
inline I repeat4(const void* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return vdupq_n_s32(word);
}
inline I iset1(int32_t x) { return vdupq_n_s32(x); }
inline I bits_from(I v, int shift, int mask) {
    const uint32x4_t moved = vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(-shift));
    return vandq_s32(vreinterpretq_s32_u32(moved), vdupq_n_s32(mask));
}
inline I low_nibbles(I v) { return vandq_s32(v, vdupq_n_s32(0x0F0F0F0F)); }
inline I high_nibbles(I v) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(v), 4)); }
inline I dot4_small(I sums, I codes, I values) {
    return vdotq_s32(sums, vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(values));
}
inline I dot4(I sums, I codes, I values) {
    return dot4_small(sums, vreinterpretq_s32_u8(veorq_u8(vreinterpretq_u8_s32(codes), vdupq_n_u8(0x80))), values);
}
inline F to_float(I v) { return vcvtq_f32_s32(v); }
inline I to_int(F v) { return vcvtnq_s32_f32(v); }
inline void store_bytes(int8_t* p, I v) {
    const int16x4_t words = vmovn_s32(v);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    const int32_t all = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    std::memcpy(p, &all, W);
}

inline F dot2(F sums, I weights, I values) {
    const I high = vdupq_n_s32(static_cast<int32_t>(0xFFFF0000u));
    sums = fma(vreinterpretq_f32_s32(vshlq_n_s32(weights, 16)), vreinterpretq_f32_s32(vshlq_n_s32(values, 16)), sums);
    return fma(vreinterpretq_f32_s32(vandq_s32(weights, high)), vreinterpretq_f32_s32(vandq_s32(values, high)), sums);
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }
inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace kiloq::KILOQ_ISA
