// What both ways of sampling work on: a row of logits in blocks, candidates with their weights, a thread's buffers.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include "kernels_sampling.h"

namespace kiloq {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Candidate {
    int token;
    double weight;
};

inline bool heavier(const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
}

// Floats on a cache line's border; grows, never shrinks.
class Buffer {
public:
    float* room(int count) {
        if (count > size_) {
            data_.reset(static_cast<float*>(::operator new(sizeof(float) * count, kLine)));
            size_ = count;
        }
        return data_.get();
    }

private:
    static constexpr std::align_val_t kLine{64};
    struct Free {
        void operator()(float* p) const { ::operator delete(p, kLine); }
    };
    std::unique_ptr<float, Free> data_;
    int size_ = 0;
};

struct Scratch {
    Buffer weights;
    std::vector<float> maxima, sums, order;
    std::vector<std::pair<int, float>> unsteered;  // tokens and their logits before steering
    std::vector<Candidate> candidates, ranked;
};

inline Scratch& scratch() {
    thread_local Scratch buffers;
    return buffers;
}

// Logits in blocks; `temperature` and `top` say how a logit becomes a weight: e^(logit / temperature - top).
struct Row {
    const float* logits;
    int vocab;
    float temperature = 1.0f;
    float top = 0.0f;

    int blocks() const { return (vocab + kSamplingBlock - 1) / kSamplingBlock; }
    int size(int block) const { return std::min(kSamplingBlock, vocab - block * kSamplingBlock); }
    const float* block(int b) const { return logits + b * kSamplingBlock; }
    float scaled(int token) const { return logits[token] / temperature; }
    double weight(int token) const { return std::exp(static_cast<double>(scaled(token)) - top); }
};

inline double total_of(std::span<const Candidate> candidates) {
    double total = 0.0;
    for (const Candidate& c : candidates) total += c.weight;
    return total;
}

// The last, from the heaviest on, of the smallest set whose weight reaches the target; at least one. Halves the
// undecided part again and again, so that its time grows with their number. `ranked` is put in some other order.
inline Candidate last_of_nucleus(std::span<Candidate> ranked, double target) {
    size_t low = 0, high = ranked.size();  // rank `low` is inside, rank `high` outside
    double before = 0.0;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        std::nth_element(ranked.begin() + low, ranked.begin() + middle, ranked.begin() + high, heavier);
        const double mass = before + total_of(ranked.subspan(low, middle - low));
        if (mass < target) {
            before = mass;
            low = middle;
        } else {
            high = middle;
        }
    }
    return ranked[low];
}

}  // namespace kiloq
