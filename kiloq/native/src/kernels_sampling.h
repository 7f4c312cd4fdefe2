// Passes over a block of logits or weights, the sampler's inner loops. A block is at most kSamplingBlock long, so that
// sums of floats stay within an ulp or two and whoever adds blocks up does it in double.
#pragma once

namespace kiloq {

constexpr int kSamplingBlock = 256;
constexpr int kThresholds = 4;

struct SamplingKernels {
    // The largest of count >= 1 values; NaN where any of them is.
    float (*largest)(const float* values, int count);
    // Writes the places, ascending, of values in [low, high); returns how many. `places` has room for count.
    int (*find)(const float* values, int count, float low, float high, int* places);
    // Writes e^(value / temperature - top), 0 below e^-87, and returns the sum; no value / temperature exceeds top.
    float (*weigh)(const float* values, int count, float temperature, float top, float* weights);
    // The sums of weights >= each of kThresholds thresholds.
    void (*masses)(const float* weights, int count, const float* thresholds, float* sums);
    // Sets weights below `least` to 0 and returns the sum of the others.
    float (*cut)(float* weights, int count, float least);
};

}  // namespace kiloq
