// The passes over blocks of logits and weights against double, for every length that leaves another tail.
#pragma once

#include "check.h"
#include "cpu.h"

namespace check {

using namespace kiloq;

void check_largest(int n, Random& random) {
    std::vector<float> x = random.values(n);
    for (float& v : x) v -= 100.0f;  // all negative: a tail filled with zeros would win
    that(kernels().sampling.largest(x.data(), n) == *std::max_element(x.begin(), x.end()),
         "largest of %d negative values", n);
    x[random.below(n)] = kInfinity;
    that(kernels().sampling.largest(x.data(), n) == kInfinity, "largest of %d values with infinity", n);
    for (int i = 0; i < n; ++i) {
        const float value = x[i];
        x[i] = kNan;
        that(std::isnan(kernels().sampling.largest(x.data(), n)), "largest of %d values lost the NaN at %d", n, i);
        x[i] = value;
    }
    std::fill(x.begin(), x.end(), -kInfinity);
    that(kernels().sampling.largest(x.data(), n) == -kInfinity, "largest of %d values of -infinity", n);
}

void check_find(int n, Random& random) {
    std::vector<float> x(n);
    for (float& v : x) v = static_cast<float>(random.below(9) - 4);  // equal values, also to the borders
    for (const float low : {-kInfinity, -2.0f, 0.0f, 1.0f, 5.0f}) {
        for (const float high : {-3.0f, 1.0f, 2.0f, kInfinity}) {
            std::vector<int> places(n + 1, -7), expected;
            const int found = kernels().sampling.find(x.data(), n, low, high, places.data());
            that(places[n] == -7, "find in %d values wrote beyond its end", n);
            for (int i = 0; i < n; ++i) {
                if (x[i] >= low && x[i] < high) expected.push_back(i);
            }
            places.resize(std::clamp(found, 0, n));
            that(places == expected,
                 "find in %d values from %g to %g: %d places, not %zu", n, low, high, found, expected.size());
        }
    }
}

void check_weigh(int n, float temperature, Random& random) {
    std::vector<float> x(n);
    for (float& v : x) v = random.below(3) == 0 ? random.uniform(-300.0f, 0.0f) : random.uniform(-9.0f, 12.0f);
    x[random.below(n)] = -kInfinity;
    const float top = *std::max_element(x.begin(), x.end()) / temperature;
    if (top == -kInfinity) return;
    Guarded weights(n);
    const float sum = kernels().sampling.weigh(x.data(), n, temperature, top, weights.data());
    double total = 0.0;
    for (int i = 0; i < n; ++i) {
        const double quotient = static_cast<double>(x[i]) / temperature, power = quotient - top;
        total += weights[i];
        if (std::fabs(power + 87.0) < 1e-3) continue;  // either side of the border
        const double exact = power < -87.0 ? 0.0 : std::exp(power);
        // The quotient and the difference are rounded, which moves the power; e^x is good to 1.2e-7 (relative).
        const double moved = exact == 0.0 ? 0.0 : kHalfUlp * (std::fabs(quotient) + std::fabs(power));
        that(near(weights[i], exact, (1.25e-7 + moved) * exact),
             "weigh %d: %.9g at temperature %g became %.9g, not %.9g", n, x[i], temperature, weights[i], exact);
    }
    that(near(sum, total, n * kHalfUlp * total), "weigh %d: the sum is %.9g, not %.9g", n, sum, total);
    that(weights.intact(), "weigh %d: wrote beyond its end", n);
}

// e^x alone over its whole range: temperature 1 and top 0 leave x as it is.
void check_exponential() {
    std::vector<float> x(kSamplingBlock), weights(kSamplingBlock);
    double worst = 0.0;
    for (int block = 0; block < 80; ++block) {
        for (int i = 0; i < kSamplingBlock; ++i) x[i] = -static_cast<float>(block * kSamplingBlock + i) * 0.00424f;
        kernels().sampling.weigh(x.data(), kSamplingBlock, 1.0f, 0.0f, weights.data());
        for (int i = 0; i < kSamplingBlock; ++i) {
            const double exact = std::exp(static_cast<double>(x[i]));
            worst = std::max(worst, std::fabs(weights[i] / exact - 1.0));
        }
    }
    that(worst < 1.2e-7, "e^x is off by %.3g, and simd_math.inc promises 1.2e-7", worst);
    x = {0.0f, -0.0f, -87.5f, -1e30f, -kInfinity, kNan};
    kernels().sampling.weigh(x.data(), 6, 1.0f, 0.0f, weights.data());
    that(weights[0] == 1.0f && weights[1] == 1.0f, "e^0 is %.9g, e^-0 is %.9g", weights[0], weights[1]);
    that(weights[2] == 0.0f && weights[3] == 0.0f && weights[4] == 0.0f, "e^x below -87 is not 0");
    that(std::isnan(weights[5]), "e^NaN is %g", weights[5]);
}

void check_masses_and_cut(int n, Random& random) {
    Guarded weights(n);
    for (int i = 0; i < n; ++i) weights[i] = random.below(4) == 0 ? 0.25f : random.uniform(0.0f, 1.0f);
    const float thresholds[kThresholds] = {0.9f, 0.25f, 0x1p-126f, 2.0f};
    float sums[kThresholds + 1] = {-1.0f, -1.0f, -1.0f, -1.0f, -1.0f};
    kernels().sampling.masses(weights.data(), n, thresholds, sums);
    for (int t = 0; t < kThresholds; ++t) {
        double exact = 0.0;
        for (int i = 0; i < n; ++i) exact += weights[i] >= thresholds[t] ? weights[i] : 0.0f;
        that(near(sums[t], exact, n * kHalfUlp * exact),
             "masses of %d from %g: %.9g, not %.9g", n, thresholds[t], sums[t], exact);
    }
    that(sums[kThresholds] == -1.0f, "masses of %d: wrote beyond its end", n);
    const std::vector<float> before(weights.data(), weights.data() + n);
    const float sum = kernels().sampling.cut(weights.data(), n, 0.25f);
    double exact = 0.0;
    for (int i = 0; i < n; ++i) {
        const float kept = before[i] < 0.25f ? 0.0f : before[i];
        that(weights[i] == kept, "cut of %d: [%d] was %.9g and is %.9g", n, i, before[i], weights[i]);
        exact += kept;
    }
    that(near(sum, exact, n * kHalfUlp * exact), "cut of %d: the sum is %.9g, not %.9g", n, sum, exact);
    that(weights.intact(), "cut of %d: wrote beyond its end", n);
}

void check_sampling() {
    Random random(2);
    std::vector<int> lengths = {100, 255, kSamplingBlock};
    for (int n = 1; n <= 40; ++n) lengths.push_back(n);
    for (const int n : lengths) {
        check_largest(n, random);
        check_find(n, random);
        for (const float temperature : {1.0f, 0.3f, 1.7f}) check_weigh(n, temperature, random);
        check_masses_and_cut(n, random);
    }
    check_exponential();
}

}  // namespace check
