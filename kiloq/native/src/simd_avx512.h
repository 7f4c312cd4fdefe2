// Vectors for x86-64 with AVX-512 (F, BW, VL, DQ, VNNI), and with its BF16 dot product where that is compiled in.
// See simd_portable.h for what each function means.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace kiloq::KILOQ_ISA {

constexpr int W = 16;
constexpr int kRowTile = 6;      // activation rows that share one read of the weights
constexpr int kBlockTile = 2;    // blocks of 16 output rows computed together
constexpr int kDotBias = 0;      // dot4 multiplies codes as they are
using F = __m512;
using I = __m512i;

inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load_part(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline void store_part(float* p, F v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
inline F set1(float x) { return _mm512_set1_ps(x); }
inline F zero() { return _mm512_setzero_ps(); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F abs(F a) { return _mm512_abs_ps(a); }
inline F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F times_pow2(F a, F n) { return _mm512_scalef_ps(a, n); }
inline F select_less(F a, F b, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
inline uint32_t at_least(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline F keep_first(F v, int n, F rest) { return _mm512_mask_blend_ps(first(n), rest, v); }
inline float sum(F v) { return _mm512_reduce_add_ps(v); }
inline float largest(F v) { return _mm512_reduce_max_ps(v); }

inline F load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline F load_bf16(const uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline F load_byte(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

inline I load_codes(const void* p) { return _mm512_loadu_si512(p); }
inline I repeat4(const void* p) { return _mm512_set1_epi32(*static_cast<const int32_t*>(p)); }
inline I iset1(int32_t x) { return _mm512_set1_epi32(x); }
inline I bits_from(I v, int shift, int mask) {
    return _mm512_and_si512(_mm512_srl_epi32(v, _mm_cvtsi32_si128(shift)), _mm512_set1_epi32(mask));
}
inline I low_nibbles(I v) { return _mm512_and_si512(v, _mm512_set1_epi8(0x0F)); }
inline I high_nibbles(I v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(0x0F)); }
inline I dot4(I sums, I codes, I values) { return _mm512_dpbusd_epi32(sums, codes, values); }
inline I dot4_small(I sums, I codes, I values) { return _mm512_dpbusd_epi32(sums, codes, values); }
inline F to_float(I v) { return _mm512_cvtepi32_ps(v); }
inline I to_int(F v) { return _mm512_cvtps_epi32(v); }
inline void store_bytes(int8_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}

inline F dot2(F sums, I weights, I values) {
#ifdef __AVX512BF16__
    return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(weights), reinterpret_cast<__m512bh>(values));
#else
    const I high = _mm512_set1_epi32(static_cast<int32_t>(0xFFFF0000u));
    sums = fma(_mm512_castsi512_ps(_mm512_slli_epi32(weights, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(values, 16)), sums);
    return fma(_mm512_castsi512_ps(_mm512_and_si512(weights, high)), _mm512_castsi512_ps(_mm512_and_si512(values, high)), sums);
#endif
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace kiloq::KILOQ_ISA
