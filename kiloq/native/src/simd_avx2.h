// Vectors for x86-64 with AVX2, FMA and F16C, and with AVX-VNNI's dot product where that is compiled in.
// See simd_portable.h for what each function means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace kiloq::KILOQ_ISA {

constexpr int W = 8;
constexpr int kRowTile = 3;
constexpr int kBlockTile = 1;
constexpr int kDotBias = 0;
using F = __m256;
using I = __m256i;

inline __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline F load_part(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline void store_part(float* p, F v, int n) { _mm256_maskstore_ps(p, first(n), v); }
inline F set1(float x) { return _mm256_set1_ps(x); }
inline F zero() { return _mm256_setzero_ps(); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
inline F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F times_pow2(F a, F n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return mul(a, _mm256_castsi256_ps(exponent));
}
inline F select_less(F a, F b, F yes, F no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
inline uint32_t at_least(F a, F b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}
inline F keep_first(F v, int n, F rest) { return _mm256_blendv_ps(rest, v, _mm256_castsi256_ps(first(n))); }
inline float sum(F v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
inline float largest(F v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

inline F load_half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline F load_bf16(const uint16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline F load_byte(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

inline I load_codes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline I repeat4(const void* p) { return _mm256_set1_epi32(*static_cast<const int32_t*>(p)); }
inline I iset1(int32_t x) { return _mm256_set1_epi32(x); }
inline I bits_from(I v, int shift, int mask) {
    return _mm256_and_si256(_mm256_srl_epi32(v, _mm_cvtsi32_si128(shift)), _mm256_set1_epi32(mask));
}
inline I low_nibbles(I v) { return _mm256_and_si256(v, _mm256_set1_epi8(0x0F)); }
inline I high_nibbles(I v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(0x0F)); }
#ifdef __AVXVNNI__
inline I dot4(I sums, I codes, I values) { return _mm256_dpbusd_avx_epi32(sums, codes, values); }
inline I dot4_small(I sums, I codes, I values) { return _mm256_dpbusd_avx_epi32(sums, codes, values); }
#else
// Even and odd bytes apart, in 16 bits: vpmaddubsw would saturate where two products exceed 32,767.
inline I dot4(I sums, I codes, I values) {
    const I even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(0xFF)),
                                     _mm256_srai_epi16(_mm256_slli_epi16(values, 8), 8));
    const I odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(values, 8));
    return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
}
inline I dot4_small(I sums, I codes, I values) {
    const I pairs = _mm256_maddubs_epi16(codes, values);
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif
inline F to_float(I v) { return _mm256_cvtepi32_ps(v); }
inline I to_int(F v) { return _mm256_cvtps_epi32(v); }
inline void store_bytes(int8_t* p, I v) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

inline F dot2(F sums, I weights, I values) {
    const I high = _mm256_set1_epi32(static_cast<int32_t>(0xFFFF0000u));
    sums = fma(_mm256_castsi256_ps(_mm256_slli_epi32(weights, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(values, 16)), sums);
    return fma(_mm256_castsi256_ps(_mm256_and_si256(weights, high)), _mm256_castsi256_ps(_mm256_and_si256(values, high)), sums);
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace kiloq::KILOQ_ISA
