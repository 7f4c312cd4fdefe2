// Number formats: bfloat16 and IEEE half as bits, and the ways in which a weight matrix is stored.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace kiloq {

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float bf16_to_float(uint16_t bits) { return bits_to_float(static_cast<uint32_t>(bits) << 16); }

// To nearest, ties to even; NaN stays NaN.
inline uint16_t float_to_bf16(float value) {
    const uint32_t bits = float_to_bits(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, exponent = (half >> 10) & 0x1Fu, mantissa = half & 0x3FFu;
    if (exponent == 0x1F) return bits_to_float(sign | 0x7F800000u | (mantissa << 13));
    if (exponent != 0) return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float small = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -small : small;
}

// To nearest, ties to even; what is too large becomes infinity.
inline uint16_t float_to_half(float value) {
    const uint32_t bits = float_to_bits(value);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return sign | 0x7E00u;
    if (magnitude >= 0x477FF000u) return sign | 0x7C00u;
    if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded bits at the end of the float
        const float shifted = bits_to_float(magnitude) + 0.5f;
        return sign | static_cast<uint16_t>(float_to_bits(shifted) - 0x3F000000u);
    }
    const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
    return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
}

enum class Format { fp32, bf16, int8, int4 };

// What a group's codes are measured from. value = scale * (code - middle), scale * (code - zero), or
// scale * code + minimum, with middle = 128 for int8 and 8 for int4.
enum class Offset { none, zero, minimum };

}  // namespace kiloq
