// What the kernel checks share: reproducible random numbers, comparison, and the count of failures.
//
// Tolerances are bounds of float arithmetic, not fitted numbers: kHalfUlp is the relative error of one rounded
// operation, and a sum of n products is off by at most n + 1 of these times the sum of the products' magnitudes, in any
// order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

namespace check {

constexpr double kHalfUlp = 0x1p-24;
constexpr double kTiny = 0x1p-120;  // below this, floats may lose bits or be flushed to zero
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

inline long checks = 0, failures = 0;

// Counts one check; prints a line where it fails, for the first 40 failures.
[[gnu::format(printf, 2, 3)]] inline void that(bool good, const char* format, ...) {
    ++checks;
    if (good || ++failures > 40) return;
    va_list values;
    va_start(values, format);
    std::vprintf(format, values);
    va_end(values);
    std::printf("\n");
}

inline bool near(double actual, double expected, double tolerance) {
    return std::fabs(actual - expected) <= tolerance + kTiny;  // false for NaN
}

template <class T>
bool same_bits(const T* a, const T* b, size_t count) {
    return std::memcmp(a, b, count * sizeof(T)) == 0;
}

// Knuth's 64-bit linear congruential generator: the same numbers on every machine.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed * 2 + 1) { bits(); }
    uint32_t bits() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<uint32_t>(state_ >> 32);
    }
    int below(int limit) { return static_cast<int>((static_cast<uint64_t>(bits()) * limit) >> 32); }
    float uniform(float low, float high) { return low + (high - low) * static_cast<float>(bits() >> 8) * 0x1p-24f; }
    // Mostly small with a few large values, as activations are.
    float value() {
        const float x = uniform(-1.0f, 1.0f);
        return below(16) == 0 ? x * 20.0f : x;
    }
    std::vector<float> values(size_t count) {
        std::vector<float> out(count);
        for (float& x : out) x = value();
        return out;
    }

private:
    uint64_t state_;
};

// `count` floats followed by guards that no kernel may touch.
class Guarded {
public:
    explicit Guarded(size_t count, float fill = 0.0f) : count_(count), values_(count + kGuards, fill) {
        std::fill(values_.begin() + count, values_.end(), kGuard);
    }
    float* data() { return values_.data(); }
    float& operator[](size_t i) { return values_[i]; }
    bool intact() const {
        return std::all_of(values_.begin() + count_, values_.end(), [](float x) { return x == kGuard; });
    }

private:
    static constexpr int kGuards = 16;
    static constexpr float kGuard = -12345.0f;
    size_t count_;
    std::vector<float> values_;
};

}  // namespace check
