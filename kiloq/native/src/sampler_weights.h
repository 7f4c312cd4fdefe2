// Sampling where any token of the vocabulary may be drawn: one float weight a token and one sum a block, from which
// filters take weights away. Top-p narrows its border with four thresholds a pass, until few tokens are left to be put
// in order; those are compared in double.
#pragma once

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <utility>
#include <vector>

#include "cpu.h"
#include "sampler_row.h"

namespace kiloq {

// The weight at `share` of the way from one to another, by their logarithms.
inline float between(float from, float to, float share) { return from * std::pow(to / from, share); }

class Weights {
public:
    // filtered: weights will be taken away; else only the sums are kept, which saves writing and reading the others.
    Weights(const Row& row, Scratch& s, bool filtered)
        : row_(row), stride_(filtered ? kSamplingBlock : 0), weights_(s.weights.room(filtered ? row.vocab : kSamplingBlock)),
          sums_(s.sums), band_(s.ranked) {
        sums_.assign(row.blocks(), 0.0f);
        for (int b = 0; b < row.blocks(); ++b) {
            if (s.maxima[b] / row.temperature - row.top < -87.0f) continue;  // all 0; such blocks are not read again
            sums_[b] = weigh(b);
        }
    }

    void keep_nucleus(double top_p) {
        const double target = std::max(top_p * total(), DBL_MIN);
        const auto [low, high] = border(target);
        const double above = split(low, high);
        if (band_.empty()) return;  // the float sums' rounding can leave none
        const Candidate last = last_of_nucleus(band_, target - above);
        restore([last](const Candidate& c) { return !heavier(last, c); });
    }

    void keep_from(double least) {
        const float border = static_cast<float>(least);
        split(std::max(border * (1 - kMargin), FLT_MIN), border * (1 + kMargin));
        restore([least](const Candidate& c) { return c.weight >= least; });
    }

    int draw(double uniform) const {
        const double target = uniform * total();
        double before = 0.0, sum = 0.0;
        int drawn = -1;
        for (int b = 0; b < row_.blocks(); ++b) {
            if (sums_[b] <= 0.0f) continue;
            drawn = b;
            before = sum;
            sum += sums_[b];
            if (sum > target) break;
        }
        if (stride_ == 0) weigh(drawn);
        int token = drawn * kSamplingBlock;
        for (int i = 0; i < row_.size(drawn); ++i) {
            if (block(drawn)[i] <= 0.0f) continue;
            token = drawn * kSamplingBlock + i;
            before += block(drawn)[i];
            if (before > target) break;
        }
        return token;
    }

    double total() const {
        double total = 0.0;
        for (const float sum : sums_) total += sum;
        return total;
    }

private:
    static constexpr int kBandTokens = 2048;  // about this many are sorted out at the nucleus's border
    static constexpr int kMostPasses = 40;    // 36 leave 88 * 0.6^36 < 1e-6 of the widest bracket's logarithm
    static constexpr float kMargin = 1e-6f;   // weights this close, relatively, are compared in double

    float* block(int b) const { return weights_ + b * stride_; }
    float weigh(int b) const {
        return kernels().sampling.weigh(row_.block(b), row_.size(b), row_.temperature, row_.top, block(b));
    }

    // A weight from which on there is at least the target, and one from which on there is less, with few between.
    // Each pass tries two thresholds close to where a straight line puts the target, and two farther off, so that at
    // most 0.6 of the bracket is left, on a logarithmic scale.
    std::pair<float, float> border(double target) const {
        double low_mass = total(), high_mass = 0.0;
        // Weights below this are, all together, at most half of what may be left out.
        float low = std::max(static_cast<float>(0.5 * (low_mass - target) / row_.vocab), FLT_MIN), high = 2.0f;
        float guess = between(high, low, 0.7f);
        for (int pass = 0; pass < kMostPasses; ++pass) {
            if (!(low_mass - high_mass > static_cast<double>(kBandTokens) * low && high > low * (1 + kMargin))) break;
            const std::array<float, kThresholds> thresholds = {between(high, guess, 0.6f), between(high, guess, 0.92f),
                                                               between(guess, low, 0.08f), between(guess, low, 0.4f)};
            const std::array<double, kThresholds> masses = masses_from(thresholds);
            int t = 0;
            while (t < kThresholds && masses[t] < target) ++t;
            if (t < kThresholds) low = thresholds[t], low_mass = masses[t];
            if (t > 0) high = thresholds[t - 1], high_mass = masses[t - 1];
            const double share = (target - high_mass) / (low_mass - high_mass);
            guess = std::clamp(high + (low - high) * static_cast<float>(share), low, high);  // rounding can pass low
        }
        return {low * (1 - kMargin), high * (1 + kMargin)};
    }

    std::array<double, kThresholds> masses_from(const std::array<float, kThresholds>& thresholds) const {
        std::array<double, kThresholds> masses{};
        std::array<float, kThresholds> part;
        for (int b = 0; b < row_.blocks(); ++b) {
            if (sums_[b] < thresholds.back()) continue;
            kernels().sampling.masses(block(b), row_.size(b), thresholds.data(), part.data());
            for (int t = 0; t < kThresholds; ++t) masses[t] += part[t];
        }
        return masses;
    }

    // Takes away all weights below `high`; those in [low, high) wait in band_, in double. Returns what is left.
    double split(float low, float high) {
        std::array<int, kSamplingBlock> places;
        band_.clear();
        for (int b = 0; b < row_.blocks(); ++b) {
            if (sums_[b] < low) {
                sums_[b] = 0.0f;
                continue;
            }
            const int found = kernels().sampling.find(block(b), row_.size(b), low, high, places.data());
            for (int i = 0; i < found; ++i) {
                const int token = b * kSamplingBlock + places[i];
                band_.push_back({token, row_.weight(token)});
            }
            sums_[b] = kernels().sampling.cut(block(b), row_.size(b), high);
        }
        return total();
    }

    template <class Keep>
    void restore(Keep keep) {
        for (const Candidate& c : band_) {
            if (!keep(c)) continue;
            const float weight = static_cast<float>(c.weight);
            weights_[c.token] = weight;
            sums_[c.token / kSamplingBlock] += weight;
        }
    }

    const Row& row_;
    const int stride_;  // 0: all blocks take turns in the memory of one
    float* weights_;
    std::vector<float>& sums_;
    std::vector<Candidate>& band_;
};

}  // namespace kiloq
