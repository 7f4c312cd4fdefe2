// normalise, quantise, narrow, swiglu and rotate against double, for every length that leaves another tail.
#pragma once

#include "check.h"
#include "cpu.h"

namespace check {

using namespace kiloq;

void check_normalise(int n, Random& random) {
    const std::vector<float> x = random.values(n), weight = random.values(n);
    const float eps = 1e-6f;
    double squares = 0.0;
    for (const float v : x) squares += static_cast<double>(v) * v;
    const double factor = 1.0 / std::sqrt(squares / n + eps);
    Guarded apart(n), same(n);
    std::copy(x.begin(), x.end(), same.data());
    kernels().rows.normalise(x.data(), weight.data(), eps, n, apart.data());
    kernels().rows.normalise(same.data(), weight.data(), eps, n, same.data());
    for (int i = 0; i < n; ++i) {
        const double exact = x[i] * factor * weight[i];  // sums of squares: sixteen chains at least; ten more roundings
        that(near(apart[i], exact, (n / 16 + 14) * kHalfUlp * std::fabs(exact)),
             "normalise %d: [%d] is %.9g, not %.9g", n, i, apart[i], exact);
    }
    that(same_bits(apart.data(), same.data(), n), "normalise %d: differs in place", n);
    that(apart.intact() && same.intact(), "normalise %d: wrote beyond its end", n);
}

void check_quantise(int n, float factor, Random& random) {
    std::vector<float> x = random.values(n);
    for (float& v : x) v *= factor * (random.below(64) == 0 ? 20.0f : 1.0f);
    const int count = (n + 31) / 32, most = most_outliers(count * 32);
    std::vector<ActivationGroup> groups(count + 1);
    std::memset(static_cast<void*>(groups.data()), 99, groups.size() * sizeof(ActivationGroup));
    const ActivationGroup untouched = groups.back();
    std::vector<Outlier> outliers(most + 1, {-1, 0.0f});
    int32_t found = -1;
    x.resize(count * 32);  // as the decoder pads
    kernels().rows.quantise(x.data(), count * 32, 4.0f, {groups.data(), outliers.data(), &found});
    double squares = 0.0;
    for (const float v : x) squares += static_cast<double>(v) * v;
    const double limit = 4.0 * std::sqrt(squares / (count * 32));
    const bool plain = factor == 1.0f;  // of tiny and huge numbers the squares are 0 and infinite in float
    std::vector<float> rest = x;
    that(found >= 0 && found <= most && outliers[most].column == -1, "quantise %d: %d outliers", n, found);
    for (int i = 0; i < found; ++i) {
        const int k = outliers[i].column;
        that(k >= 0 && k < n && (i == 0 || outliers[i - 1].column < k), "quantise %d: outlier %d at %d", n, i, k);
        that(outliers[i].value == x[k], "quantise %d: outlier %d is %.9g, not %.9g", n, i, outliers[i].value, x[k]);
        rest[k] = 0.0f;
    }
    for (int k = 0; plain && k < n; ++k) {
        const double size = std::fabs(x[k]);
        if (std::fabs(size - limit) < 1e-5 * limit) continue;
        that((size > limit) == (x[k] != 0.0f && rest[k] == 0.0f), "quantise %d: %.9g at %d of %.9g", n, size, k, limit);
    }
    for (int g = 0; g < count; ++g) {
        const ActivationGroup& got = groups[g];
        float peak = 0.0f;
        for (int k = g * 32; k < g * 32 + 32; ++k) peak = std::max(peak, std::fabs(rest[k]));
        that(got.scale == peak / 127.0f, "quantise %d: scale %d is %.9g, not %.9g", n, g, got.scale, peak / 127.0f);
        int sum = 0;
        for (int i = 0; i < 32; ++i) {
            const double exact = peak > 0x1p-120f ? rest[g * 32 + i] * 127.0 / peak : 0.0;
            // To nearest; a float quotient and a float product move the border by 127 * 2 half ulps.
            that(std::fabs(got.codes[i] - exact) <= 0.5 + 256 * kHalfUlp,
                 "quantise %d: code %d is %d, not %.4f", n, g * 32 + i, got.codes[i], exact);
            sum += got.codes[i];
        }
        that(got.sum == sum, "quantise %d: sum %d is %d, not %d", n, g, got.sum, sum);
        that(got.total == got.scale * static_cast<float>(sum), "quantise %d: total %d is %.9g", n, g, got.total);
    }
    that(std::memcmp(&groups[count], &untouched, sizeof untouched) == 0, "quantise %d: wrote beyond its end", n);
}

// A group that holds NaN or an infinity must not come out as ordinary numbers.
void check_quantise_poison(Random& random) {
    for (const float bad : {kNan, kInfinity, -kInfinity}) {
        for (int at = 0; at < 32; ++at) {
            std::vector<float> x = random.values(32);
            x[at] = bad;
            ActivationGroup got;
            Outlier outliers[2];
            int32_t found;
            kernels().rows.quantise(x.data(), 32, 4.0f, {&got, outliers, &found});
            that(!std::isfinite(got.scale), "quantise: %g at %d gave a scale of %g", bad, at, got.scale);
        }
    }
}

void check_narrow(int n, Random& random) {
    std::vector<float> x(n);
    for (float& v : x) {
        const uint32_t bits = random.bits();  // any float, NaN and subnormal ones included; some halfway between two
        v = bits_to_float(random.below(4) == 0 ? (bits & 0xFFFF0000u) | 0x8000u : bits);
    }
    std::vector<uint16_t> out(n + 8, 4321);
    kernels().rows.narrow(x.data(), n, out.data());
    for (int i = 0; i < n; ++i) {
        const float result = bf16_to_float(out[i]);
        if (std::isnan(x[i])) {
            that(std::isnan(result), "narrow: NaN became %g", result);
            continue;
        }
        // The two bfloat16 around x, and the even one when it lies halfway.
        const uint32_t bits = float_to_bits(x[i]) & 0xFFFF0000u;
        const float below = bits_to_float(bits), above = bits_to_float(bits + 0x10000u);
        const double middle = std::isinf(above) ? std::copysign(0x1.FFp127, above) : (0.0 + below + above) / 2;
        const bool even = (bits & 0x10000u) == 0;
        const bool up = std::fabs(x[i]) > std::fabs(middle) || (x[i] == middle && !even);
        that(result == (up ? above : below), "narrow %d: %.9g became %.9g", n, x[i], result);
    }
    that(std::count(out.begin() + n, out.end(), 4321) == 8, "narrow %d: wrote beyond its end", n);
}

void check_swiglu(int n, Random& random) {
    std::vector<float> gate(n);
    for (float& g : gate) g = random.below(4) == 0 ? random.uniform(-120.0f, 120.0f) : random.uniform(-4.0f, 4.0f);
    gate[random.below(n)] = 0.0f;
    const std::vector<float> up = random.values(n);
    Guarded apart(n), on_gate(n), on_up(n);
    std::copy(gate.begin(), gate.end(), on_gate.data());
    std::copy(up.begin(), up.end(), on_up.data());
    kernels().rows.swiglu(gate.data(), up.data(), n, apart.data());
    kernels().rows.swiglu(on_gate.data(), up.data(), n, on_gate.data());
    kernels().rows.swiglu(gate.data(), on_up.data(), n, on_up.data());
    for (int i = 0; i < n; ++i) {
        const double exact = gate[i] / (1.0 + std::exp(-static_cast<double>(gate[i]))) * up[i];
        // e^x is good to 1.2e-7 and 0 below e^-87 (1.7e-38); then an addition, a quotient and two products.
        const double tolerance = (1.2e-7 + 5 * kHalfUlp) * std::fabs(exact) + 2e-38 * std::fabs(gate[i] * up[i]);
        that(near(apart[i], exact, tolerance),
             "swiglu %d: gate %.9g, up %.9g gives %.9g, not %.9g", n, gate[i], up[i], apart[i], exact);
    }
    that(same_bits(apart.data(), on_gate.data(), n) && same_bits(apart.data(), on_up.data(), n),
         "swiglu %d: differs in place", n);
    that(apart.intact() && on_gate.intact() && on_up.intact(), "swiglu %d: wrote beyond its end", n);
}

void check_rotate(int pairs, Random& random) {
    const std::vector<float> x = random.values(2 * pairs);
    std::vector<float> cosines(pairs), sines(pairs);
    for (int i = 0; i < pairs; ++i) {
        const float angle = random.uniform(-3.2f, 3.2f);
        cosines[i] = std::cos(angle);
        sines[i] = std::sin(angle);
    }
    Guarded out(2 * pairs);
    std::copy(x.begin(), x.end(), out.data());
    kernels().rows.rotate(out.data(), cosines.data(), sines.data(), pairs);
    for (int i = 0; i < pairs; ++i) {
        const double a = x[i], b = x[pairs + i], c = cosines[i], s = sines[i];
        // Two products and their sum are rounded.
        that(near(out[i], a * c - b * s, 2 * kHalfUlp * (std::fabs(a * c) + std::fabs(b * s))),
             "rotate %d: first of pair %d is %.9g, not %.9g", pairs, i, out[i], a * c - b * s);
        that(near(out[pairs + i], a * s + b * c, 2 * kHalfUlp * (std::fabs(a * s) + std::fabs(b * c))),
             "rotate %d: second of pair %d is %.9g, not %.9g", pairs, i, out[pairs + i], a * s + b * c);
    }
    that(out.intact(), "rotate %d: wrote beyond its end", pairs);
}

void check_rows() {
    Random random(1);
    std::vector<int> lengths = {100, 576, 1000, 4096};
    for (int n = 1; n <= 70; ++n) lengths.push_back(n);
    for (const int n : lengths) {
        check_normalise(n, random);
        for (const float factor : {1.0f, 1e-30f, 1e30f, 1e-38f, 0.0f}) check_quantise(n, factor, random);
        check_narrow(n, random);
        check_swiglu(n, random);
        check_rotate(n, random);
    }
    check_quantise_poison(random);
}

}  // namespace check
